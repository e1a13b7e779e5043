"""Selective prediction: answers only where the error among answers is below a stated rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.guarantees.binomial import upper_bound
from bayestune.guarantees.quantile import check_probability
from bayestune.metrics.inputs import ArrayLike, as_correct, as_vector, same_rows

#: Shares of the calibration rows at which a threshold is tried: 1/20, 2/20, …, 1.
SHARES = 20


@dataclass(frozen=True)
class AbstainRule:
    """Which rows are answered: those whose uncertainty is below a threshold.

    It holds the whole curve of risk by threshold. All bounds hold at once, so that ``max_risk`` may
    be chosen, and changed by `dataclasses.replace`, with the curve in view.

    Attributes:
        by: name of the score; its uncertainty is −confidence for ``max_prob``.
        max_risk: error rate allowed among the answered rows.
        confidence: probability with which it is kept, over the draw of the calibration rows.
        n: rows that it was calibrated on.
        thresholds: T uncertainties, ascending, below which a row is answered; ∞ answers all.
        accepted: calibration rows answered at each ``(T,)``.
        errors: those of them that were wrong ``(T,)``.
    """

    by: str
    max_risk: float
    confidence: float
    n: int
    thresholds: tuple[float, ...]
    accepted: tuple[int, ...]
    errors: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("max_risk", "confidence"):
            check_probability(getattr(self, name), name)
        if not len(self.thresholds) == len(self.accepted) == len(self.errors) > 0:
            raise ConfigError("thresholds, accepted and errors must be as many, and at least one.")

    @cached_property
    def bounds(self) -> tuple[float, ...]:
        """What the risk is at most at each threshold, all at once with ``confidence`` ``(T,)``."""
        level = (1 - self.confidence) / len(self.thresholds)
        counts = zip(self.errors, self.accepted, strict=True)
        return tuple(upper_bound(errors, rows, level) for errors, rows in counts)

    @property
    def chosen(self) -> int | None:
        """The position of the threshold that answers most rows; None where none is safe."""
        safe = [i for i, bound in enumerate(self.bounds) if bound <= self.max_risk]
        return max(safe, key=lambda i: self.accepted[i], default=None)

    @property
    def threshold(self) -> float:
        """The uncertainty below which a row is answered; −∞ where none is safe."""
        return -math.inf if self.chosen is None else self.thresholds[self.chosen]


def calibrate(
    uncertainty: ArrayLike,
    correct: ArrayLike,
    max_risk: float,
    confidence: float = 0.95,
    by: str = "max_prob",
) -> AbstainRule:
    """Return the rule that answers as many rows as keep the error rate with a confidence.

        P( E[wrong | u < t̂] ≤ r ) ≥ 1 − δ

    over the draw of n independent calibration rows, though t̂ is chosen by them. Tried are the T
    thresholds t_j = u_(j+1), the uncertainty of the row after the j-th, at fixed shares j/n, and ∞.
    Given t_j and that a_j rows lie below it (fewer than j where uncertainties are equal), those
    rows are independent draws of all that lie below it, and their errors Bin(a_j, risk(t_j)): an
    exact bound at level δ/T each holds for all T at once, ties or not, whatever the score.

    Args:
        uncertainty: of n rows ``(n,)``; the higher, the less certain.
        correct: whether the prediction is right ``(n,)``, booleans or 0 and 1.
        max_risk: r in (0, 1).
        confidence: 1 − δ in (0, 1).
        by: name of the score.

    Raises:
        ConfigError: if a number is out of range.
        DataError: if the rows are empty, of different lengths or not numbers.

    Source: Angelopoulos, Bates, Candès, Jordan and Lei 2022, "Learn then test", with Bonferroni's
    correction; Geifman and El-Yaniv 2017, "Selective classification for deep neural networks".
    """
    u, right = as_vector(uncertainty, "uncertainty"), as_correct(correct)
    same_rows(u, right, "uncertainty", "correct")
    n = len(u)
    ordered = torch.cat([u.sort().values, torch.tensor([math.inf], dtype=torch.float64)])
    ranks = sorted({math.ceil(n * share / SHARES) for share in range(1, SHARES + 1)})
    thresholds = ordered[ranks]  # (T,)
    below = u[:, None] < thresholds  # (n, T)
    wrong = below & (right == 0)[:, None]
    return AbstainRule(
        by=by,
        max_risk=max_risk,
        confidence=confidence,
        n=n,
        thresholds=tuple(thresholds.tolist()),
        accepted=tuple(below.sum(0).tolist()),
        errors=tuple(wrong.sum(0).tolist()),
    )


def apply(rule: AbstainRule, uncertainty: Tensor) -> Tensor:
    """Return which rows are not answered.

    Args:
        rule: from `calibrate`.
        uncertainty: of N rows, the same score ``(N,)``.

    Returns:
        bool ``(N,)``; true where the uncertainty is not below the threshold, or NaN.
    """
    return ~(uncertainty.double() < rule.threshold)
