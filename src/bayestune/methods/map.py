"""Maximum a posteriori: LoRA under Gaussian priors on its factors and its head.

    L = −mean log softmax(Wφ)_y + κ/N · ( ‖A‖² + ‖B‖² ) / 2σ_p² + κ/N · ‖W‖² / 2σ₀²

A real prior, in the loss and weighed against the data, where the published MAP is a decoupled
weight decay of 1e-5 that changes nothing in float32. σ₀² is the prior of the Bayesian heads: it
gives a logit the variance 2 · head.prior_scale · max(1, ln K). κ is chosen by held-out likelihood
unless it is given: at 1, the posterior's mode, few rows are fitted too little.

Source: the objective of Wang et al. 2024 (arXiv 2406.11675) with q a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.head import LinearHead
from bayestune.methods import parts
from bayestune.methods.checks import require_linear, require_plain, require_positive
from bayestune.methods.contract import Parts
from bayestune.weights import PointWeights, sites


@dataclass(frozen=True)
class Options:
    """Options of MAP."""

    prior_std: float = 0.2  # σ_p of the adapter's weights

    def __post_init__(self) -> None:
        require_positive(self, "prior_std")


def check(recipe: Recipe) -> None:
    """Refuse what is not a point under a prior on all of it."""
    require_linear(recipe)
    require_plain(recipe)


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and put the prior over its adapter."""
    made = parts.build(base, source, tokenizer, task, recipe)
    where = sites(made.backbone.peft_model, "A", "B", "core")
    made.backbone.weights = PointWeights(where, prior_std=Options(**recipe.weights).prior_std)
    assert isinstance(made.head, LinearHead)
    made.head.prior_scale = recipe.head.prior_scale
    return made


METHOD = parts.compose(
    "map",
    "LoRA under Gaussian priors on adapter and head; a point estimate",
    "arXiv 2406.11675",
    parts.POINT,
    {"train": {"kl": "auto"}},
    build=build,
    check=check,
    options=Options,
)
