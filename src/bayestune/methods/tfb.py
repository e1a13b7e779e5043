"""TFB: as much isotropic noise on a trained LoRA as its loss tolerates.

    ΔW = s (U diag d) (Vᵀ A + Ω ∘ E),  Ω_ij = σ_q / d_i,
    σ_q = max { σ : |ℓ(σ) − ℓ(0)| ≤ ε ℓ(0) },   ℓ the mean loss over anchor rows under S draws

The draws are the same for every σ, so that ℓ is a smooth function, and the σ returned is within
the tolerance. The published search divides by the number of anchors as well, which leaves σ at the
end of its range: ``weights.per_anchor=true``.

Source: Shi et al. 2024 (arXiv 2412.05723), sections 4.2 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bayestune.backbone import Base, Reader, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.finalize import Rows, item_nll, observed_at
from bayestune.methods import parts as pieces
from bayestune.methods.checks import (
    require_classes,
    require_lora_under_point,
    require_positive,
)
from bayestune.methods.contract import Parts
from bayestune.posterior.observed import LogitDraws
from bayestune.progress import Progress, silent
from bayestune.weights import IsotropicWeights, sites


@dataclass(frozen=True)
class Options:
    """Options of TFB."""

    tolerance: float = 0.003  # ε: share of the loss, or of the predictions, that may change
    statistic: Literal["nll", "changed"] = "nll"  # changed: the share of changed predictions
    labels: Literal["pseudo", "true"] = "pseudo"  # pseudo: what the noiseless model predicts
    anchor: Literal["train", "held_out"] = "train"  # rows that the loss is measured on
    anchors: int = 500  # how many at most
    upper: float = 0.2  # largest σ_q
    steps: int = 12  # how many σ_q are tried at most
    per_anchor: bool = False  # divide the change by the number of anchors, as published

    def __post_init__(self) -> None:
        require_positive(self, "tolerance", "upper", "anchors", "steps")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base; nothing is random before training has ended."""
    require_classes(recipe, task)
    made = pieces.build(base, source, tokenizer, task, recipe)
    made.backbone.weights = IsotropicWeights(sites(made.backbone.peft_model, "A"))
    return made


def settle(
    parts: Parts,
    reader: Reader,
    fit: Rows,
    held_out: Rows | None,
    recipe: Recipe,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Search the largest σ_q that the anchors tolerate."""
    options, weights = Options(**recipe.weights), parts.backbone.weights
    assert isinstance(weights, IsotropicWeights)
    weights.diagonalise()
    rows = fit if options.anchor == "train" else held_out
    assert rows is not None
    some = list(range(0, len(rows), -(-len(rows) // options.anchors)))
    encoded, given = rows.encoded.select(some), rows.labels[some]
    mask = None if rows.mask is None else rows.mask[some]
    samples = recipe.predict.samples
    draws = weights.default_draws if samples in ("auto", 0) else int(samples)

    def probs(sigma: float) -> Tensor:
        weights.get_buffer("sigma").fill_(sigma)
        observed = weights.observe(reader, parts.head, encoded, draws, recipe.seed)
        assert isinstance(observed, LogitDraws)
        return observed_at(observed, 1.0, mask).probs

    still = probs(0.0)
    labels = given if options.labels == "true" else still.argmax(1)
    scale = len(some) if options.per_anchor else 1

    def change(sigma: float) -> float:
        noisy = probs(sigma)
        if options.statistic == "changed":
            return float((noisy.argmax(1) != still.argmax(1)).float().mean())
        before = float(item_nll(still, labels).mean())
        after = float(item_nll(noisy, labels).mean())
        return abs(after - before) / max(before, 1e-12) / scale

    with progress("searching the noise", options.steps) as advance:
        sigma = largest(change, options, lambda: advance(1))
    weights.get_buffer("sigma").fill_(sigma)
    return {"sigma": sigma, "anchors": len(some)}


def largest(
    change: Callable[[float], float], options: Options, advance: Callable[[], None]
) -> float:
    """Return a σ whose change is within the last tenth of the tolerance, or the nearest below it.

    A change grows like a power of σ, the second one as long as it is small; two changes tell which.

    Args:
        change: what a σ does to the anchors; grows with it.
        options: the tolerance, the largest σ and how many to try.
        advance: called at each.

    Returns:
        σ; the largest one where the tolerance does not bind, 0 where no σ is within it.
    """
    low, high, power = 0.0, math.inf, 2.0
    sigma, before = options.upper, (0.0, 0.0)
    for _ in range(options.steps):
        found = change(sigma)
        advance()
        if found <= options.tolerance:
            low = sigma
        else:
            high = sigma
        if low == options.upper or 0.9 * options.tolerance <= found <= options.tolerance:
            break
        if found > 0 and before[1] > 0:
            power = math.log(found / before[1]) / math.log(sigma / before[0])
        before = sigma, found
        share = 0.95 * options.tolerance / max(found, 1e-12)
        guess = sigma * share ** (1 / min(max(power, 0.5), 4.0))
        sigma = guess if low < guess < high else math.sqrt(max(low, high / 16) * high)
    return low


METHOD = pieces.compose(
    "tfb",
    "isotropic noise on a trained LoRA, as much as its loss tolerates; S passes",
    "arXiv 2412.05723",
    pieces.POINT,
    build=build,
    check=require_lora_under_point,
    settle=settle,
    after=("mle", "map"),
    options=Options,
)
