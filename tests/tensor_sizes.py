"""How many numbers an action computes: what its time and memory are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sizes(NamedTuple):
    """Numbers in the largest tensor that was computed, and in all of them."""

    largest: int
    total: int


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = [0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        new = not func.is_view and not func._schema.is_mutable
        if isinstance(found, torch.Tensor) and new:
            self.seen.append(found.numel())
        return found


def sizes_of(action: Callable[[], Any]) -> Sizes:
    """Run an action and count the numbers in the tensors it makes: no views, nothing in place."""
    with _Counter() as counter:
        action()
    return Sizes(max(counter.seen), sum(counter.seen))
