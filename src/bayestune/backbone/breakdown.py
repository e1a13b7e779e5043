"""Which layer is the first whose numbers break down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def first_broken(module: nn.Module, run: Callable[[], Any], mask: Tensor) -> str | None:
    """Return the name of the first submodule, in order of execution, whose output is not finite.

    Args:
        module: what is looked into.
        run: a pass through it, done again without gradients.
        mask: ones where a token is ``(B, T)``; what stands at padding is nobody's.

    Returns:
        Its dotted name; None where every output is finite.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not found and not all(_finite(t, mask) for t in _tensors(output)):
                found.append(name)

        return look

    with ExitStack() as stack, torch.no_grad():
        for name, part in module.named_modules():
            if name:
                hook = part.register_forward_hook(watch(name))
                stack.callback(hook.remove)
        run()
    return found[0] if found else None


def broken_rows(
    features: Tensor, module: nn.Module, run: Callable[[], Any] | None, mask: Tensor
) -> str:
    """Return in words which features ``(B, D)`` are not finite, and where that began.

    Args:
        features: of a batch, some of them not finite.
        module: what they came from.
        run: see `first_broken`; None where the pass is not to be done again.
        mask: ones where a token is ``(B, T)``.
    """
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()
    layer = None if run is None else first_broken(module, run, mask)
    where = f", first in {layer}" if layer else ""
    return f"NaN or infinite (positions {bad[:8]} of the batch{where})"


def _finite(tensor: Tensor, mask: Tensor) -> bool:
    if tensor.shape[:2] == mask.shape:
        tensor = tensor[mask.bool()]
    return bool(torch.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
