"""Laplace-LoRA: a Gaussian around trained LoRA factors, by the curvature of the likelihood.

    q(A, B) = N(θ*, (Λ + τI)⁻¹),   Λ = Σ_n J_nᵀ (diag p_n − p_n p_nᵀ) J_n  in Kronecker factors
    f(x) ~ N(f_θ*(x), J (Λ + τI)⁻¹ Jᵀ)

Training is by maximum likelihood (with ``train.weight_decay``, a prior's). The factors of each
layer are balanced before anything is measured: (B R⁻¹, R A) is the same function, and would have
another prior. With ``adapter.kind=polar`` the core Θ is random between its frames.

Source: Yang, Robeyns, Wang and Aitchison 2024 (arXiv 2308.13111).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bayestune.backbone import Base, Reader, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.finalize import (
    Rows,
    given_temperature,
    held_out_nll,
    observed_at,
    search_temperature,
)
from bayestune.geometry import balanced
from bayestune.methods import parts as pieces
from bayestune.methods.checks import require_classes, require_plain_under_point, require_positive
from bayestune.methods.contract import Parts
from bayestune.posterior.observed import LogitMoments
from bayestune.progress import Progress, silent
from bayestune.weights import LaplaceWeights, head_site, sites

#: Factors on the precision of the evidence that held-out rows choose from, and the standard
#: deviation of the prior on their logarithm: a decade, as for the last layer.
FACTORS = tuple(10.0 ** (step / 2) for step in range(-4, 9))
PRIOR_SD = math.log(10)


@dataclass(frozen=True)
class Options:
    """Options of Laplace-LoRA."""

    #: τ of every weight. evidence: where the marginal likelihood of the training labels is largest;
    #: held_out: a factor on that, by held-out likelihood
    precision: float | Literal["evidence", "held_out"] = "held_out"
    groups: Literal["shared", "layer"] = "shared"  # weights that share one precision
    columns: int = 16  # most eigenvectors of a site's larger Kronecker factor
    head: bool = False  # the last layer is random too

    def __post_init__(self) -> None:
        require_positive(self, "columns")
        if not isinstance(self.precision, str):
            require_positive(self, "precision")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and get ready for a posterior over LoRA's A and B, or over PoLAR's core.

    Raises:
        ConfigError: if the task has no classes.
    """
    require_classes(recipe, task)
    made = pieces.build(base, source, tokenizer, task, recipe)
    options = Options(**recipe.weights)
    factors = ("A", "B") if recipe.adapter.kind == "lora" else ("core",)
    where = sites(made.backbone.peft_model, *factors)
    if options.head:
        where |= head_site(made.head)
    made.backbone.weights = LaplaceWeights(where, columns=options.columns)
    return made


def settle(
    parts: Parts,
    reader: Reader,
    fit: Rows,
    held_out: Rows | None,
    recipe: Recipe,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Balance the factors, measure their curvature and choose the prior's precision.

    Returns:
        Under ``weights``: prior precisions by group and the log evidence in nats; with
        ``weights.precision=held_out`` the factor that was chosen and the held-out losses of all.
    """
    options, weights = Options(**recipe.weights), parts.backbone.weights
    assert isinstance(weights, LaplaceWeights)
    balance(weights)
    log_likelihood = weights.fit(reader, parts.head, fit, progress=progress)
    groups = weights.groups(options.groups)
    report: dict[str, Any] = {}
    if isinstance(options.precision, str):
        chosen = {name: weights.best_precision(group) for name, group in groups.items()}
    else:
        chosen = dict.fromkeys(groups, float(options.precision))
    _install(weights, groups, chosen)
    if options.precision == "held_out":
        assert held_out is not None
        report = _by_held_out(parts, weights, reader, held_out, recipe, progress)
        chosen = {name: report["factor"] * value for name, value in chosen.items()}
        _install(weights, groups, chosen)
    gain = sum(weights.evidence(group, chosen[name]) for name, group in groups.items())
    return {"precision": chosen, "log_evidence": log_likelihood + gain, **report}


@torch.no_grad()
def balance(weights: LaplaceWeights) -> None:
    """Balance the factors A and B of every layer in place; the function stays."""
    for name, site in weights.sites.items():
        if name.endswith(".A"):
            other = weights.sites[f"{name.removesuffix('.A')}.B"]
            B, A = balanced(other.weight, site.weight)
            other.weight.copy_(B)
            site.weight.copy_(A)


def _install(
    weights: LaplaceWeights, groups: dict[str, list[str]], precisions: dict[str, float]
) -> None:
    for name, group in groups.items():
        weights.set_precisions(dict.fromkeys(group, precisions[name]))


def _by_held_out(
    parts: Parts,
    weights: LaplaceWeights,
    reader: Reader,
    rows: Rows,
    recipe: Recipe,
    progress: Progress,
) -> dict[str, Any]:
    """Return the factor on all precisions by held-out likelihood, each at its own temperature."""
    tried: dict[float, float] = {}
    found = weights.moments(reader, parts.head, rows.encoded, FACTORS, progress=progress)
    for factor, moments in zip(FACTORS, found, strict=True):
        tried[factor] = _loss(moments, rows, recipe)
    cost = {f: nll * len(rows) + (math.log(f) / PRIOR_SD) ** 2 / 2 for f, nll in tried.items()}
    factor = min(cost, key=lambda f: cost[f])
    return {"factor": factor, "tried": {f"{f:.3g}": nll for f, nll in tried.items()}}


def _loss(moments: LogitMoments, rows: Rows, recipe: Recipe) -> float:
    predict = recipe.predict
    if predict.samples == 0:  # the mean, which would like all factors alike
        predict = replace(predict, samples="auto")

    def probs(temperature: float) -> torch.Tensor:
        return observed_at(moments, temperature, rows.mask, predict).probs

    if recipe.finalize.temperature == "auto":
        return search_temperature(probs, rows.labels)[1]
    return held_out_nll(probs(given_temperature(recipe.finalize)), rows.labels)


METHOD = pieces.compose(
    "laplace_lora",
    "Laplace posterior over LoRA's A and B; one backward pass per class",
    "arXiv 2308.13111",
    pieces.POINT,
    build=build,
    check=require_plain_under_point,
    settle=settle,
    after=("mle", "map"),
    options=Options,
)
