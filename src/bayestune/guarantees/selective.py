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

    It holds the whole curve of risk by threshold, so that a rule for another risk is
    ``dataclasses.replace(rule, max_risk=…)``. The promise is for each risk by itself: not for one
    that was picked because it came out well on these rows.

    Attributes:
        by: name of the score; its uncertainty is −confidence for ``max_prob``.
        max_risk: error rate allowed among the answered rows.
        confidence: probability with which it is kept, over the draw of the calibration rows.
        n: rows that it was calibrated on.
        thresholds: T uncertainties, ascending, below which a row is answered; ∞ answers all.
        ties: for rows whose uncertainty is equal to it, the `uniforms` below which they are.
        accepted: calibration rows answered at each ``(T,)``.
        errors: those of them that were wrong ``(T,)``.
    """

    by: str
    max_risk: float
    confidence: float
    n: int
    thresholds: tuple[float, ...]
    ties: tuple[float, ...]
    accepted: tuple[int, ...]
    errors: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("max_risk", "confidence"):
            check_probability(getattr(self, name), name)
        curve = (self.thresholds, self.ties, self.accepted, self.errors)
        if not self.thresholds or len({len(part) for part in curve}) > 1:
            raise ConfigError(
                "thresholds, ties, accepted and errors must be as many, and at least one."
            )

    @cached_property
    def bounds(self) -> tuple[float, ...]:
        """What the risk is at most at each threshold by itself, with ``confidence`` ``(T,)``."""
        counts = zip(self.errors, self.accepted, strict=True)
        return tuple(upper_bound(errors, rows, 1 - self.confidence) for errors, rows in counts)

    @property
    def chosen(self) -> int | None:
        """The position of the threshold for ``max_risk``; None where none is safe."""
        return self.at(self.max_risk)

    @property
    def threshold(self) -> float:
        """The uncertainty below which a row is answered; −∞ where none is safe."""
        return -math.inf if self.chosen is None else self.thresholds[self.chosen]

    @property
    def attainable(self) -> float | None:
        """The smallest risk for which rows would be answered; None where there is none."""
        return min((r for r in self.bounds if r < 1 and self.at(r) is not None), default=None)

    def at(self, max_risk: float) -> int | None:
        """Return the position of the threshold for a risk; None where none is safe.

        The first that is tried is the first with a tenth of the rows at which no error at all would
        be few enough, (1 − r)ʲ ≤ δ. The last that passes before one fails is taken.
        """
        found = None
        for i, (rows, bound) in enumerate(zip(self.accepted, self.bounds, strict=True)):
            enough = rows * math.log1p(-max_risk) <= math.log(1 - self.confidence)
            if not enough or 10 * rows < self.n:
                continue  # among fewer a single error would end the search
            if bound > max_risk:
                break
            found = i
        return found


def calibrate(
    uncertainty: ArrayLike,
    correct: ArrayLike,
    u: ArrayLike,
    max_risk: float,
    confidence: float = 0.95,
    by: str = "max_prob",
) -> AbstainRule:
    """Return the rule that answers as many rows as keep the error rate with a confidence.

        P( E[wrong | answered] ≤ r ) ≥ 1 − δ

    over the draw of n independent calibration rows, though they choose the threshold; whatever the
    score and however its errors depend on it. Rows are put in the order of their uncertainty, equal
    ones of u. Candidates are t_j, the row after the j-th, at ranks j that n, r and δ fix, and ∞ for
    j = n. Given t_j the j rows before it are independent draws of all rows below it, with
    E_j ~ Bin(j, risk(t_j)) errors; t_j passes if P(Bin(j, r) ≤ E_j) ≤ δ, which is the exact
    bound being at most r. They are tested in turn, each at level δ, until one fails.

    The first candidate of a risk above r is itself random, and passes with probability ≤ δ all the
    same. risk(t) is continuous, as no two rows are equal; let it cut the rows into stretches in
    which it stays above r, or does not. Whether a candidate is the first bad one depends on how
    many rows fall into each. Given those numbers rows of every stretch before it err at rate r, as
    the risk is r at both ends, and those of the stretch that it lies in at a higher one: its errors
    are no fewer than Bin(j, r).

    Args:
        uncertainty: of n rows ``(n,)``; the higher, the less certain.
        correct: whether the prediction is right ``(n,)``, booleans or 0 and 1.
        u: `uniforms` of the rows ``(n,)``.
        max_risk: r in (0, 1), fixed before these rows are looked at.
        confidence: 1 − δ in (0, 1).
        by: name of the score.

    Raises:
        ConfigError: if a number is out of range.
        DataError: if the rows are empty, of different lengths or not numbers.

    Source: Angelopoulos, Bates, Candès, Jordan and Lei 2022, "Learn then test" (fixed
    sequence testing); Geifman and El-Yaniv 2017, "Selective classification for deep neural
    networks", for the task and the exact bound.
    """
    s, right, v = as_vector(uncertainty, "uncertainty"), as_correct(correct), as_vector(u, "u")
    same_rows(s, right, "uncertainty", "correct")
    same_rows(s, v, "uncertainty", "u")
    n = len(s)
    order = v.argsort()
    order = order[s[order].argsort(stable=True)]  # (n,), by uncertainty, then by u
    ranks = sorted({math.ceil(n * share / SHARES) for share in range(1, SHARES + 1)})
    after = [order[j] for j in ranks[:-1]]
    errors = (1 - right[order]).cumsum(0).long()
    return AbstainRule(
        by=by,
        max_risk=max_risk,
        confidence=confidence,
        n=n,
        thresholds=(*(s[i].item() for i in after), math.inf),
        ties=(*(v[i].item() for i in after), 0.0),
        accepted=tuple(ranks),
        errors=tuple(int(errors[j - 1]) for j in ranks),
    )


def apply(rule: AbstainRule, uncertainty: Tensor, u: Tensor) -> Tensor:
    """Return which rows are not answered.

    Args:
        rule: from `calibrate`.
        uncertainty: of N rows, the same score ``(N,)``.
        u: `uniforms` of the rows ``(N,)``.

    Returns:
        bool ``(N,)``; true where the uncertainty is not below the threshold, or NaN.
    """
    if rule.chosen is None:
        return torch.ones_like(u, dtype=torch.bool)
    s, tie = uncertainty.double(), rule.ties[rule.chosen]
    return ~((s < rule.threshold) | (s == rule.threshold) & (u < tie))
