"""TFB: as much isotropic noise on a trained LoRA as its loss tolerates.

    ΔW = s (U diag d) (Vᵀ A + Ω ∘ E),  Ω_ij = σ_q / d_i,
    σ_q = max { σ : |ℓ(σ) − ℓ(0)| ≤ ε ℓ(0) },   ℓ the mean loss over anchor rows under S draws

The draws are the same for every σ, so that ℓ is a smooth function, and the σ returned is within
the tolerance. The published search divides by the number of anchors as well, which leaves σ at the
end of its range: ``weights.per_anchor=true``.

Source: Shi et al. 2024 (arXiv 2412.05723), sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bayestune.backbone import Base, Reader, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.finalize import Rows, item_nll, observed_at
from bayestune.methods import parts as pieces
from bayestune.methods.checks import require_lora, require_point_head, require_positive
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
    steps: int = 8  # halvings of the interval of log σ_q
    per_anchor: bool = False  # divide the change by the number of anchors, as published

    def __post_init__(self) -> None:
        require_positive(self, "tolerance", "upper", "anchors", "steps")


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base; nothing is random before training has ended."""
    require_lora(recipe)
    require_point_head(recipe)
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
    if rows is None:
        raise ConfigError("weights.anchor=held_out needs held-out rows: give a validation set.")
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
        return abs(float(item_nll(noisy, labels).mean()) - before) / before / scale

    with progress("searching the noise", options.steps + 1) as advance:
        sigma = largest(change, options, lambda: advance(1))
    weights.get_buffer("sigma").fill_(sigma)
    return {"sigma": sigma, "anchors": len(some)}


def largest(
    change: Callable[[float], float], options: Options, advance: Callable[[], None]
) -> float:
    """Return the largest σ within the tolerance, by halving the interval of its logarithm."""
    high = options.upper
    advance()
    if change(high) <= options.tolerance:
        return high
    low = high * 1e-3
    found = 0.0
    for _ in range(options.steps):
        middle = (low * high) ** 0.5
        advance()
        if change(middle) <= options.tolerance:
            low = found = middle
        else:
            high = middle
    return found


METHOD = pieces.compose(
    "tfb",
    "isotropic noise on a trained LoRA, as much as its loss tolerates; S passes",
    "arXiv 2412.05723",
    pieces.POINT,
    build=build,
    settle=settle,
    options=Options,
)
