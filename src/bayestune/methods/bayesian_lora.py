"""Bayesian-LoRA: both factors of LoRA follow small inducing matrices, as sparse processes do.

    ΔW = s · B A,   A and B matrix-normal given inducing matrices u (at most 9 × 9) with q(u)
    L  = mean NLL under one draw of all factors + κ/N · KL(q ‖ p)

A factor keeps frames Z of 9 rows in place of its own r, and a draw is their mixture but for a noise
λ on every weight. The mathematics is that of `bayestune.weights.inducing`. Label smoothing
and a bonus on entropy, which the published training adds, are options of every point head
(``train.label_smoothing``, ``train.entropy_bonus``), so that what they do can be told apart.

Source: Lin et al. 2026 (arXiv 2601.21003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.methods import parts
from bayestune.methods.checks import require_lora_under_point, require_positive
from bayestune.methods.contract import Parts
from bayestune.weights import InducedWeights, Inducing, sites


@dataclass(frozen=True)
class Options:
    """Options of Bayesian-LoRA."""

    size: int = 9  # rows and columns of an inducing matrix, at most those of its factor
    flow: int = 16  # hidden units of the flow that shapes q(u); 0 leaves it Gaussian
    prior_scale: float = 1.0  # a weight's prior deviation is this over √(inputs)
    max_std: float = 0.1  # of u, whose prior deviation is 1
    max_noise: float = 0.03  # λ, what u leaves open, in units of the prior's
    start: float = 0.01  # of the deviations of u and of λ; 0.001 as published
    rate: float = 1e-2  # learning rate of deviations and λ

    def __post_init__(self) -> None:
        if self.size < 1 or self.flow < 0:
            given = f"weights.size {self.size}, weights.flow {self.flow}"
            raise ConfigError(f"{given}; expected a size of at least 1 and a flow of 0 or more.")
        require_positive(self, "prior_scale", "start", "rate")
        for key in ("max_std", "max_noise"):
            if not self.start < getattr(self, key) <= 1:
                raise ConfigError(
                    f"weights.{key} is {getattr(self, key)}; expected above weights.start "
                    f"({self.start}) and at most 1, the prior's."
                )


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and put the posterior over both factors of LoRA."""
    made = parts.build(base, source, tokenizer, task, recipe)
    options = dict(recipe.weights)
    rate = options.pop("rate")
    where = sites(made.backbone.peft_model, "A", "B")
    made.backbone.weights = InducedWeights(where, Inducing(**options), rate=rate)
    return made


METHOD = parts.compose(
    "bayesian_lora",
    "Both factors of LoRA follow small inducing matrices; S passes of the adapted layers",
    "arXiv 2601.21003",
    parts.POINT,
    {"train": {"lr": 2e-3, "kl": 1.0}},
    build=build,
    check=require_lora_under_point,
    options=Options,
)
