"""MC dropout: LoRA trained with dropout on its inputs, which stays on when it predicts.

    p = (1/S) Σ_s softmax(z^(s)),   z^(s) under the masks of draw s

Source: Gal and Ghahramani 2016 (arXiv 1506.02142); on LoRA as in arXiv 2406.11675.
"""

from __future__ import annotations

from typing import Any

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.methods import parts
from bayestune.methods.checks import require_lora_under_point
from bayestune.methods.contract import Parts
from bayestune.weights import DropoutWeights, dropout_sites


def check(recipe: Recipe) -> None:
    """Refuse what is not LoRA with dropout under a point head."""
    require_lora_under_point(recipe)
    if recipe.adapter.dropout == 0:
        raise ConfigError("mc_dropout needs adapter.dropout above 0: it is all that is random.")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and keep the dropout of its adapter."""
    made = parts.build(base, source, tokenizer, task, recipe)
    where = dropout_sites(made.backbone.peft_model)
    made.backbone.weights = DropoutWeights(where, rate=recipe.adapter.dropout)
    return made


METHOD = parts.compose(
    "mc_dropout",
    "dropout on LoRA's inputs stays on; S passes of the adapted layers",
    "arXiv 1506.02142",
    parts.POINT,
    {"adapter": {"dropout": 0.1}},
    build=build,
    check=check,
)
