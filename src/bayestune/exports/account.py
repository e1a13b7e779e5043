"""What an export keeps of a model exactly, and what it leaves behind."""

from __future__ import annotations

from bayestune.exports.plain import is_classifier
from bayestune.head import GaussianHead, GenerativeHead, LinearHead, OrdinalHead
from bayestune.model import BayesModel
from bayestune.weights import MemberWeights


def account(model: BayesModel, *, draws: int, whole: bool, sidecar: bool) -> dict[str, list[str]]:
    """Return sentences under ``kept`` and ``left_out``.

    Args:
        model: what is exported.
        draws: how many draws of the adapter; 0 for its mean.
        whole: whether the adapter is added to the base, and rounded to its type.
        sidecar: whether the head's posterior goes along.
    """
    kept, left = [_adapter(model, draws, whole)], []
    head, weights, random = model.head, model.backbone.weights, _is_random(model)
    regression = model.task.kind == "regression"
    if is_classifier(model) and not (whole and sidecar):
        kept.append("score.weight: the rows of the last layer, no bias")
        if not regression:
            kept.append("the temperature, folded into score.weight")
    if sidecar:
        kept.append("posterior/: the head and its posterior, the features' density, the tokenizer")
    else:
        if isinstance(head, GaussianHead):
            left.append(
                "the covariance of the last layer: probabilities are those of its mean, surer than "
                "the model's own"
            )
        if regression:
            left.append("the noise around a predicted number")
        if model.density is not None:
            left.append("the density of the features, and with it the out-of-distribution score")
    if weights is not None and random and not draws:
        left.append("what is random of the adapter: this is its mean alone")
    if not is_classifier(model):
        left.append(_no_classifier(model))
    elif whole and sidecar:
        left.append("a head within GGUF, which has no place for one: it stands in posterior/")
    if model.guarantees is not None:
        left.append(
            "prediction sets and abstention: what is promised holds for the model as it was "
            "calibrated, not for another way of running it"
        )
    return {"kept": kept, "left_out": left}


def _adapter(model: BayesModel, draws: int, whole: bool) -> str:
    dtype = str(model.backbone.dtype).removeprefix("torch.")
    of = "its mean" if _is_random(model) else "as trained"
    if draws and isinstance(model.backbone.weights, MemberWeights):
        of = f"{draws} members"
    elif draws:
        of = f"{draws} draws, those of the model's own predictions with seed {model.recipe.seed}"
    how = f"added to the base in float32, then rounded to {dtype}" if whole else "as plain LoRA"
    return f"the adapter ({of}), {how}"


def _is_random(model: BayesModel) -> bool:
    weights = model.backbone.weights
    return weights is not None and weights.is_random


def _no_classifier(model: BayesModel) -> str:
    """Return why transformers' own classifiers do not compute the mean."""
    head = model.head
    if isinstance(head, GenerativeHead):
        reason = "the head is a density of every class"
    elif isinstance(head, OrdinalHead):
        reason = "the head is one score and cut points"
    elif not model.backbone.decoder:
        reason = "transformers' encoders classify by layers of their own"
    else:
        assert isinstance(head, GaussianHead | LinearHead)
        reason = f"the features are pooled by {model.backbone.pooling}"
    return f"a classifier that transformers loads: {reason}"
