"""A model at its posterior's mean, or at one draw, as plain tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.errors import ConfigError, ModelError
from bayestune.head import GaussianHead, LinearHead
from bayestune.model import BayesModel
from bayestune.peft import lora_factors
from bayestune.store import Probe, probe
from bayestune.weights import (
    ContextualWeights,
    DropoutWeights,
    LaplaceWeights,
    MemberWeights,
    ScaledWeights,
)


@dataclass(frozen=True)
class Plain:
    """What stands for an adapter and its head elsewhere: ``W + B A`` and rows of logits.

    Attributes:
        factors: A ``(r, in)`` and B ``(out, r)`` of every adapted layer, by its path in the bare
            transformer.
        score: rows of the last layer ``(K, D)``; None where the head is no linear map.
        probe: by which the adapter is known where it is served.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    score: Tensor | None
    probe: Probe


def plain(model: BayesModel, draw: int | None = None) -> Plain:
    """Return a model at its posterior's mean, or at draw s of the adapter's weights.

    A draw is that of the model's own predictions: it depends on the recipe's seed, its number and
    the layer alone.

    Args:
        model: it is left as it is.
        draw: s; None for the mean.

    Raises:
        ModelError: if no matrices stand for its adapter.
    """
    weights = model.backbone.weights
    if isinstance(weights, ScaledWeights) and not weights.folded:
        raise ModelError("The model is not trained yet: its scales stand beside the adapter.")
    with torch.no_grad(), _drawn(model, draw):
        factors = lora_factors(model.backbone.transformer)
        score = None
        if isinstance(model.head, GaussianHead | LinearHead):
            score = model.head.weight.detach().clone()
        copies = {path: (A.clone(), B) for path, (A, B) in factors.items()}
        return Plain(copies, score, probe(model))


def draws(model: BayesModel, samples: int | None) -> list[int]:
    """Return which draws are asked for; none of them stands for the mean.

    Args:
        model: whose.
        samples: S; None for the mean, and for all members of an ensemble, which has none.

    Raises:
        ConfigError: if the model's predictions do not come of draws that stand for themselves.
    """
    weights = model.backbone.weights
    if isinstance(weights, ContextualWeights):
        raise ConfigError(
            f"{model.method.name} adds to every token something that depends on the token: no "
            "matrices stand for it. Load it with bayestune, or train another method."
        )
    if samples is None:
        return list(range(weights.members)) if isinstance(weights, MemberWeights) else []
    if samples == 0:
        return []
    reason = None
    if weights is None and not getattr(model.head, "point", False):
        reason = (
            "its posterior is over the last layer, which --to vllm and --to gguf-ready write whole "
            "beside one adapter"
        )
    elif weights is None or not weights.is_random:
        reason = "it is a point: nothing is drawn"
    elif isinstance(weights, DropoutWeights):
        reason = "its draws depend on the text, so that none of them is one set of weights"
    elif isinstance(weights, LaplaceWeights):
        reason = "it predicts by the linearised model, which no draws of the weights reproduce"
    elif isinstance(weights, MemberWeights) and samples > weights.members:
        reason = f"it has {weights.members} members, and {samples} are asked for"
    if reason is not None:
        raise ConfigError(
            f"{model.method.name} has no posterior samples to export: {reason}. Leave out samples "
            "for its mean."
        )
    return list(range(samples))


@contextmanager
def _drawn(model: BayesModel, draw: int | None) -> Iterator[None]:
    """Put a draw in the place of the mean for a while."""
    weights = model.backbone.weights
    if weights is None or draw is None:
        yield
        return
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, site in weights.sites.items():
            (deviation,) = weights.deviations(name, [draw], model.recipe.seed)
            kept.append((site.weight, site.weight.detach().clone()))
            site.weight.add_(deviation)
        yield
    finally:
        for weight, mean in kept:
            weight.copy_(mean)


def is_classifier(model: BayesModel) -> bool:
    """Return whether the mean is what transformers' own sequence classifiers compute.

    That is a linear map without bias of a decoder's last token.
    """
    task = model.backbone.peft_model.peft_config["default"].task_type
    return task == "SEQ_CLS" and model.backbone.pooling == "last"


def require_decoder(model: BayesModel, form: str) -> None:
    """Raise ModelError for an encoder."""
    if not model.backbone.decoder:
        raise ModelError(
            f"--to {form} is about decoders; {model.source.name} is an encoder. Export --to merged "
            "and serve that."
        )
