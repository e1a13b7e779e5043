"""Whether scores of new rows are distributed as those of a reference."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch

from bayestune.errors import DataError
from bayestune.metrics.inputs import ArrayLike, as_vector

#: Of a prediction of classes or of numbers, where it has them.
SCORES = ("entropy", "epistemic", "ood_score", "std")
#: Quantiles that stand for a reference: at 0, 1/20, …, 1.
POINTS = 21
#: Bins of equal mass under the reference.
BINS = 10
_FLOOR = 1e-4


def quantile_points(scores: ArrayLike) -> list[float]:
    """Return the quantiles of a score at 0, 1/20, …, 1.

    Args:
        scores: of n reference rows ``(n,)``.

    Raises:
        DataError: if there are none.
    """
    s = as_vector(scores, "scores").double()
    if not len(s):
        raise DataError("There are no reference rows.")
    return torch.quantile(s, torch.linspace(0, 1, POINTS, dtype=torch.float64)).tolist()


def rank(score: float, points: Sequence[float]) -> float | None:
    """Return the share of the reference below a score, by linear interpolation.

        F(s) ≈ i/20 + (s − q_i) / (20 (q_{i+1} − q_i)),   q_i ≤ s < q_{i+1}

    Ranks of rows from the reference's distribution are uniform on [0, 1]. A score equal to several
    quantiles gets the middle of their shares.

    Args:
        score: s.
        points: from `quantile_points`.

    Returns:
        A share, or None where the reference does not vary.
    """
    if points[0] == points[-1]:
        return None
    left, right, last = bisect_left(points, score), bisect_right(points, score), len(points) - 1
    if right > left:  # on a quantile, or on several
        return (left + right - 1) / 2 / last
    if left == 0:
        return 0.0
    if left > last:
        return 1.0
    low, high = points[left - 1], points[left]
    return (left - 1 + (score - low) / (high - low)) / last


def stability_index(ranks: Sequence[float]) -> float:
    """Return the population stability index of ranks against the uniform distribution.

        PSI = Σ_b (a_b − 1/B) log(a_b B),   a_b the share of the ranks in bin b of B = 10

    The symmetric Kullback–Leibler divergence of the two histograms, in nats. By custom below 0.1
    nothing has changed and above 0.25 much has; n rows of the reference itself give about
    (B − 1)/n.

    Args:
        ranks: n ranks in [0, 1].

    Raises:
        DataError: if there are none.
    """
    if not ranks:
        raise DataError("There are no ranks.")
    r = torch.tensor(list(ranks), dtype=torch.float64)
    bins = (r * BINS).long().clamp(0, BINS - 1)
    share = torch.bincount(bins, minlength=BINS).double() / len(r)
    share = share.clamp_min(_FLOOR)
    return float(((share - 1 / BINS) * (share * BINS).log()).sum())
