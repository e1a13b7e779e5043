"""Whole models: the adapter added to the base, written by transformers itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayestune.backbone.quantise import is_quantised
from bayestune.errors import ModelError
from bayestune.exports.plain import Plain
from bayestune.model import BayesModel

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require_mergeable(model: BayesModel) -> None:
    """Raise ModelError where the base is quantised, or has the adapter in it already."""
    if is_quantised(model.backbone.transformer.config):
        raise ModelError(
            f"{model.source.name} is quantised: its weights and the adapter have no exact sum. "
            "Export --to lora, or train on the unquantised model."
        )
    for path, layer in _adapted(model).items():
        if layer.merged:
            raise ModelError(
                f"The adapter is merged into the base at {path}: unmerge it first "
                "(unmerge_adapter), or it would be added twice."
            )
        weight = layer.get_base_layer().weight
        if weight.dtype not in _FLOATS or weight.ndim != 2:
            raise ModelError(
                f"The base layer {path} holds {weight.dtype} {tuple(weight.shape)}, to which "
                "nothing can be added exactly. Export --to lora."
            )


@contextmanager
def merged_weights(model: BayesModel, plain: Plain, *, keep: bool) -> Iterator[dict[str, Tensor]]:
    """Yield the weights of the bare transformer by name, with ``B A`` added where it is adapted.

    They are the model's own memory, changed in place in float32 and rounded once to the type of the
    base; nothing else is copied.

    Args:
        model: it must not be used within.
        plain: the factors.
        keep: whether to put the base back afterwards, bit by bit, from copies of the adapted layers
            that are held meanwhile.
    """
    state = _base_state(model)
    kept: dict[str, Tensor] = {}
    try:
        for path, (A, B) in plain.factors.items():
            weight = state[f"{path}.weight"]
            if keep:
                kept[path] = weight.clone()
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(wide) + B.to(wide) @ A.to(wide))
        yield state
    finally:
        for path, weight in kept.items():
            state[f"{path}.weight"].copy_(weight)


def shell(model: BayesModel, auto: Any, **config: Any) -> Any:
    """Return a model of one of transformers' auto classes on the same base, without weights.

    Args:
        model: gives configuration and type.
        auto: the class.
        **config: values that are set in the configuration.
    """
    transformer: Any = model.backbone.transformer
    own = copy.deepcopy(transformer.config)
    for key, value in config.items():
        setattr(own, key, value)
    with torch.device("meta"):
        return auto.from_config(own, dtype=model.backbone.dtype)


def write_model(made: Any, state: dict[str, Tensor], folder: Path, shard_size: str | None) -> None:
    """Write the weights of a model, its configuration and the index of its shards.

    Args:
        made: from `shell`.
        state: its weights by name; tied ones once.
        folder: where.
        shard_size: the largest file, such as ``5GB``; transformers' own where None.

    Raises:
        ModelError: if a weight is missing or unknown.
    """
    expected = set(made.state_dict())
    tied = {k for k in expected - set(state) if k in (made.all_tied_weights_keys or {})}
    wrong = sorted((expected - tied) ^ set(state))
    if wrong:
        raise ModelError(f"{type(made).__name__} cannot be written: {wrong[0]} does not fit it.")
    options = {} if shard_size is None else {"max_shard_size": shard_size}
    made.save_pretrained(folder, state_dict=state, **options)


def _adapted(model: BayesModel) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = model.backbone.transformer.named_modules()
    return {path: module for path, module in named if isinstance(module, BaseTunerLayer)}


def _base_state(model: BayesModel) -> dict[str, Tensor]:
    """Return the weights of the transformer under the names that it has without an adapter."""
    state = dict(model.backbone.transformer.state_dict())
    for path in _adapted(model):
        for key in [key for key in state if key.startswith(f"{path}.")]:
            tensor = state.pop(key)
            inner = key.removeprefix(f"{path}.")
            if inner.startswith("base_layer."):
                state[f"{path}.{inner.removeprefix('base_layer.')}"] = tensor
    return state
