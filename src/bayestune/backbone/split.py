"""One forward pass in two halves: below the first adapted layer, and from it on.

The lower half is frozen, so its result for a text never changes and can be kept. Both halves run
the model's own forward, so masks, rotary positions and layer types are its own; only layers are
stepped over. That makes the split independent of the architecture, and `Backbone.check_split`
measures on real tokens that it gives the same features before anything relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Carries the hidden states that enter the first adapted layer out of the forward pass."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def enter_states(
    model: nn.Module, layers: nn.ModuleList, first: int, inputs: dict[str, Any]
) -> Tensor:
    """Run the model up to ``layers[first]`` and return the states that enter it.

    Args:
        model: the transformer.
        layers: its layers.
        first: index of the first adapted layer.
        inputs: the model's keyword inputs, ``input_ids`` ``(B, T)`` among them.

    Returns:
        Hidden states ``(B, T, D)``.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = layers[first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError("the forward pass never reached the first adapted layer")


def resume_from(
    model: nn.Module, layers: nn.ModuleList, first: int, hidden: Tensor, inputs: dict[str, Any]
) -> Any:
    """Run the model from ``layers[first]`` on, with the given states entering it.

    Args:
        model: the transformer.
        layers: its layers.
        first: index of the first adapted layer.
        hidden: states ``(B, T, D)`` as `enter_states` returned them.
        inputs: the model's other keyword inputs, the mask ``(B, T)`` among them; no ``input_ids``.

    Returns:
        The model's output.
    """

    def replace(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    # Any ids do: what is looked up for them is replaced. Embeddings in their place would have to
    # have the width that the architecture embeds in, which need not be that of its layers.
    ids = torch.zeros_like(inputs["attention_mask"], dtype=torch.int64)  # (B, T)
    handle = layers[first].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        with _stepped_over(layers, first):
            return model(input_ids=ids, **inputs)
    finally:
        handle.remove()


@contextmanager
def _stepped_over(layers: nn.ModuleList, first: int) -> Iterator[None]:
    """Let the layers below ``first`` return their input as it is."""

    def step_over(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    below = [layers[i] for i in range(first)]
    for layer in below:
        layer.forward = step_over  # on the instance: shadows the class's forward
    try:
        yield
    finally:
        for layer in below:
            del layer.forward
