"""Pooled features out of the stock forward pass of a sequence classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bayestune.backbone.breakdown import broken_rows
from bayestune.backbone.pool import last
from bayestune.errors import ModelError, NumericsError
from bayestune.head import GaussianHead, LinearHead


def head_of(model: nn.Module) -> GaussianHead | LinearHead:
    """Return the head of ours that a model predicts with.

    PEFT keeps the original beside a copy for each adapter; the active adapter's is the one.

    Raises:
        ModelError: there is none, or more than one.
    """
    from peft.utils import ModulesToSaveWrapper

    found: dict[int, GaussianHead | LinearHead] = {}
    unused: set[int] = set()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            active = module.modules_to_save[module.active_adapters[0]]
            unused |= {id(m) for m in module.modules()} - {id(m) for m in active.modules()}
        if isinstance(module, GaussianHead | LinearHead):
            found[id(module)] = module
    heads = [head for key, head in found.items() if key not in unused]
    if len(heads) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(heads)} Bayesian last layers, expected one: call "
            "bt.head.install(model) on the sequence classifier, before get_peft_model."
        )
    return heads[0]


def pooled(model: nn.Module, head: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the feature of each text that the head reads, by one pass of the whole model.

    The pass is the model's own, with all that wraps it. A decoder's classifier scores every token
    and picks one by the padding token's id, which misses the last token of a text that ends in
    that id; here the token is picked by the attention mask, before the head.

    Args:
        model: the sequence classifier, wrapped or not.
        head: the head inside it.
        inputs: a batch without labels.

    Returns:
        Features ``(B, D)``, in the dtype of the model.

    Raises:
        ModelError: the model does not return what its head gives.
        NumericsError: a feature is not finite; it names the first layer.
    """
    mask = inputs.get("attention_mask")
    with _features_as_logits(head, mask):
        outputs = model(**inputs)
    phi = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    if phi.ndim != 2 or phi.shape[1] != head.in_features:
        raise ModelError(
            f"{type(model).__name__} returned logits {tuple(phi.shape)} where its head gave "
            f"features (B, {head.in_features}): it does something to logits that is not known here."
        )
    if not torch.isfinite(phi).all():
        # Without what wraps it for several processes, which would wait for all of them.
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        ones = torch.ones_like(phi[:, :1], dtype=torch.int64) if mask is None else mask
        raise NumericsError(
            f"Features are {broken_rows(phi, bare, lambda: bare(**inputs), ones)}; lower the "
            "learning rate, or load the model in float32 or bfloat16."
        )
    return phi


@contextmanager
def _features_as_logits(head: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Let a head see one token of each text, and pass on what it sees in the place of logits."""
    tokens: list[int] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        (hidden,) = args
        tokens[:] = []
        if hidden.ndim == 2:  # an encoder has pooled already
            return (hidden,)
        tokens.append(hidden.shape[1])
        ones = hidden.new_ones(hidden.shape[:2], dtype=torch.int64)
        return (last(hidden, ones if mask is None else mask),)

    def after(_: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        (phi,) = args  # (B, D)
        # Whichever token the model now picks by its padding token, it is this one.
        return phi[:, None].expand(-1, tokens[0], -1) if tokens else phi

    hooks = head.register_forward_pre_hook(before), head.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
