"""SWAG: a Gaussian fitted to the last part of the path of training, over LoRA and the head.

    q = N( θ̄, scale · ½ (diag σ² + D Dᵀ / (K − 1)) )

Training is that of LoRA by maximum likelihood, at a rate that does not fall to zero; what is kept
are its end and the moments of its weights. The mean θ̄, written into the weights, is stochastic
weight averaging (``predict.samples=0``). A and B are averaged each for itself, which is not the
average of B A: (B, A) and (B R, R⁻¹ A) are the same model and have other means. Within one run the
path is short enough for that to matter little; means of different runs would not do.

Source: Maddox et al. 2019 (arXiv 1902.02476); Onal et al. 2024 (arXiv 2405.03425) for LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayestune.backbone import Base, Reader, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.finalize import Rows
from bayestune.methods import all_weights, parts
from bayestune.methods.contract import Method, Parts
from bayestune.progress import Progress, silent
from bayestune.weights import SwagWeights


@dataclass(frozen=True)
class Options:
    """Options of SWAG."""

    start: float = 0.5  # share of the steps before the first snapshot
    snapshots: int = 20  # evenly spaced over the rest
    columns: int = 10  # K, the deviations that make the low-rank part
    scale: float = 1.0  # factor on the covariance

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ConfigError(f"weights.start is {self.start}; expected a share in [0, 1).")
        for key in ("snapshots", "columns"):
            if getattr(self, key) < 2:
                raise ConfigError(f"weights.{key} is {getattr(self, key)}; expected at least 2.")
        if not self.scale > 0:
            raise ConfigError(
                f"weights.scale is {self.scale}; expected above 0 (predict.samples=0 is the mean)."
            )


def check(recipe: Recipe) -> None:
    """Refuse what is not LoRA with a linear head, trained to the end."""
    all_weights.check(recipe)
    if recipe.train.keep != "last" or recipe.train.patience > 0:
        raise ConfigError(
            "swag averages the end of training, not its best epoch: use train.keep=last and "
            "train.patience=0."
        )


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and keep the moments of all that is trained."""
    made, where = all_weights.build(base, source, tokenizer, task, recipe)
    options = Options(**recipe.weights)
    made.backbone.weights = SwagWeights(
        where,
        start=options.start,
        snapshots=options.snapshots,
        columns=options.columns,
        scale=options.scale,
        head=all_weights.HEAD,
    )
    return made


def settle(
    parts: Parts,
    reader: Reader,
    fit: Rows,
    held_out: Rows | None,
    recipe: Recipe,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the mean into the weights; return how many snapshots it is of and how far they lie."""
    weights = parts.backbone.weights
    assert isinstance(weights, SwagWeights)
    weights.take_mean()
    count = int(weights.path(all_weights.HEAD).count)
    return {"snapshots": count, "std": all_weights.deviations(weights.std, weights.sites)}


METHOD = Method(
    name="swag",
    summary="Gaussian over LoRA and head, from the path of training; 10 passes of adapted layers",
    source="arXiv 2405.03425",
    build=build,
    loss=parts.loss,
    settle=settle,
    finalize=parts.finalize,
    predict=parts.predict,
    check=check,
    defaults={
        "adapter": {"kind": "lora"},
        "head": {"kind": "linear"},
        "train": {"lr": 5e-4, "kl": 0.0, "floor": 0.5, "keep": "last"},
        "finalize": {"refresh": "none", "temperature": "none"},
    },
    options=Options,
)
