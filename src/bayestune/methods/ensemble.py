"""A deep ensemble of LoRA adapters: M trainings from different starts, probabilities averaged.

    p = (1/M) Σ_m softmax(W_m φ_m)

Members differ in the start of A and in the order of batches; they share the frozen base and, with
it, its blind spots. All M go through the adapted layers in one pass.

Source: Lakshminarayanan et al. 2017 (arXiv 1612.01474); on LoRA: Wang et al. 2023 (2310.00035).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.methods import parts as pieces
from bayestune.methods.checks import require_lora_under_point
from bayestune.methods.contract import Parts
from bayestune.weights import MemberWeights, head_site, sites


@dataclass(frozen=True)
class Options:
    """Options of an ensemble."""

    members: int = 5  # M; time and storage grow with it

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ConfigError(f"weights.members is {self.members}; expected 2 or more.")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and make room for the members."""
    if task.kind == "regression" and recipe.head.noise == "heteroscedastic":
        raise ConfigError(
            "the members of an ensemble share the noise around a number: use head.noise=gaussian "
            "or student."
        )
    made = pieces.build(base, source, tokenizer, task, recipe)
    where = sites(made.backbone.peft_model, "A", "B") | head_site(made.head)
    made.backbone.weights = MemberWeights(where, members=Options(**recipe.weights).members)
    return made


METHOD = pieces.compose(
    "ensemble",
    "M LoRA adapters from different starts; M trainings, M passes of the adapted layers",
    "arXiv 1612.01474",
    pieces.POINT,
    build=build,
    check=require_lora_under_point,
    options=Options,
)
