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
from typing import Any

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.methods import parts
from bayestune.methods.contract import Method, Parts
from bayestune.weights import GaussianWeights, sites


@dataclass(frozen=True)
class Options:
    """Options of BLoB."""

    prior_std: float = 0.2  # σ_p; larger lets weights be larger and less certain
    init_std: float = 0.05  # ε: deviations start between ε²/2 and ε²
    rate: float = 1e-2  # learning rate of G, whose square is the deviation

    def __post_init__(self) -> None:
        for key in ("prior_std", "init_std", "rate"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"weights.{key} is {getattr(self, key)}; expected above 0.")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and put a Gaussian over LoRA's A, or over PoLAR's core."""
    made = parts.build(base, source, tokenizer, task, recipe)
    options = Options(**recipe.weights)
    where = sites(made.backbone.peft_model, "A" if recipe.adapter.kind == "lora" else "core")
    made.backbone.weights = GaussianWeights(
        where, prior_std=options.prior_std, init_std=options.init_std, rate=options.rate
    )
    return made


METHOD = Method(
    name="blob",
    summary="Gaussian over LoRA's A, learnt by backpropagation; 10 passes of the adapted layers",
    source="arXiv 2406.11675",
    build=build,
    loss=parts.loss,
    finalize=parts.finalize,
    predict=parts.predict,
    defaults={
        "adapter": {"kind": "lora"},
        "head": {"kind": "linear"},
        "train": {"lr": 5e-4, "kl": 1.0},
        "finalize": {"refresh": "none", "temperature": "none"},
    },
    options=Options,
)
