"""BLoB: Bayesian low-rank adaptation by backpropagation, a Gaussian over one factor of the adapter.

    ΔW = s · B A,  q(A) = Π N(M_ij, G_ij⁴),  p(A) = Π N(0, σ_p²)
    L  = mean NLL under a draw of A for every example + κ/N · KL(q ‖ p)

B stays a point, which makes the divergence on ΔW one on A alone. With ``adapter.kind=polar`` the
core Θ is random and its frames are points. The published implementation differs in two named ways:
``weights.kl_weight=cycle`` and ``weights.kl_step=sgd``.

Source: Wang et al. 2024 (arXiv 2406.11675).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.methods import parts
from bayestune.methods.checks import require_plain_under_point, require_positive
from bayestune.methods.contract import Parts
from bayestune.weights import GaussianWeights, sites


@dataclass(frozen=True)
class Options:
    """Options of BLoB."""

    prior_std: float = 0.2  # σ_p; larger lets weights be larger and less certain
    init_std: float = 0.05  # ε: deviations start between ε²/2 and ε²
    rate: float = 1e-2  # learning rate of G, whose square is the deviation
    kl_weight: Literal["elbo", "cycle"] = "elbo"  # cycle: 1/M, rising in cycles, as published
    kl_step: Literal["joint", "sgd"] = "joint"  # sgd: by an optimiser of its own, as published

    def __post_init__(self) -> None:
        require_positive(self, "prior_std", "init_std", "rate")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and put a Gaussian over LoRA's A, or over PoLAR's core."""
    made = parts.build(base, source, tokenizer, task, recipe)
    options = Options(**recipe.weights)
    where = sites(made.backbone.peft_model, "A" if recipe.adapter.kind == "lora" else "core")
    made.backbone.weights = GaussianWeights(
        where,
        prior_std=options.prior_std,
        init_std=options.init_std,
        rate=options.rate,
        cycle=options.kl_weight == "cycle",
        steps_itself=options.kl_step == "sgd",
    )
    return made


METHOD = parts.compose(
    "blob",
    "Gaussian over LoRA's A, learnt by backpropagation; S passes of the adapted layers",
    "arXiv 2406.11675",
    parts.POINT,
    {"train": {"kl": 1.0}},
    build=build,
    check=require_plain_under_point,
    options=Options,
)
