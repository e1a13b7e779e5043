"""ScalaBL: LoRA with random singular values, 2r numbers per layer.

    ΔW = s_α · B diag(s̃) V,   s̃ ~ N(μ, diag σ²),   p(s̃) = N(0, I)
    L  = mean NLL under a draw of s̃ for every example + κ/N · KL(q ‖ p)

The published implementation minimises KL(p ‖ q), which drives σ² to 1 + μ² whatever the data say:
``weights.kl_direction=reverse``.

Source: Samplawski et al. 2025 (arXiv 2506.21408).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.methods import parts
from bayestune.methods.checks import require_lora_under_point, require_positive
from bayestune.methods.contract import Parts
from bayestune.weights import ScaledWeights, sites


@dataclass(frozen=True)
class Options:
    """Options of ScalaBL."""

    init_std: float = 0.05  # ε: deviations start between ε/√2 and ε
    rate: float = 1e-2  # learning rate of the logarithm of the deviations
    kl_direction: Literal["forward", "reverse"] = "forward"  # reverse: KL(p ‖ q), as published

    def __post_init__(self) -> None:
        require_positive(self, "init_std", "rate")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and put random scales between LoRA's factors."""
    made = parts.build(base, source, tokenizer, task, recipe)
    options = Options(**recipe.weights)
    made.backbone.weights = ScaledWeights(
        sites(made.backbone.peft_model, "A"),
        init_std=options.init_std,
        rate=options.rate,
        reverse=options.kl_direction == "reverse",
    )
    return made


METHOD = parts.compose(
    "scalabl",
    "LoRA with random singular values, 2r numbers per layer; S passes of the adapted layers",
    "arXiv 2506.21408",
    parts.POINT,
    {"train": {"kl": 1.0}},
    build=build,
    check=require_lora_under_point,
    options=Options,
)
