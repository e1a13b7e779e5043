"""How well a score tells out-of-distribution rows from in-distribution ones.

Everywhere the out-of-distribution (OOD) rows are the positive class and a higher score means
"more out-of-distribution": pass ``1 - max_k p_k``, an entropy, a mutual information or a density
distance, not a confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.metrics.inputs import ArrayLike, as_vector, count_for_share


@dataclass(frozen=True, eq=False)
class RocCurve:
    """The receiver operating characteristic: straight lines between its T + 1 corners.

    Attributes:
        false_positive: share of in-distribution rows taken for OOD, float64 (T + 1,), from 0 to 1.
        true_positive: share of OOD rows recognised, float64 (T + 1,), from 0 to 1.
    """

    false_positive: Tensor
    true_positive: Tensor

    def at(self, rates: Tensor) -> Tensor:
        """Return the share of OOD rows recognised at rates of false positives in [0, 1] (R,).

        Where the curve is upright its upper end counts.
        """
        x, y = self.false_positive, self.true_positive
        rates = rates.to(x)
        left = (torch.searchsorted(x, rates, right=True) - 1).clamp(max=x.numel() - 2)
        wide = (x[left + 1] - x[left]).clamp(min=torch.finfo(x.dtype).tiny)
        share = ((rates - x[left]) / wide).clamp(0, 1)
        return y[left] + share * (y[left + 1] - y[left])


def roc_curve(id_scores: ArrayLike, ood_scores: ArrayLike) -> RocCurve:
    """Return the receiver operating characteristic, whose area is :func:`auroc`.

    A corner for every distinct score t of the T: ``(#{s_id ≥ t} / N, #{s_ood ≥ t} / M)``, from the
    highest score to the lowest, after (0, 0).

    Args:
        id_scores: scores of in-distribution rows (N,), higher = more OOD.
        ood_scores: scores of out-of-distribution rows (M,).

    Returns:
        The corners of the curve.

    Raises:
        DataError: if either is empty, not a vector or has a NaN or infinite score.

    Source: Fawcett 2006, "An introduction to ROC analysis", algorithm 1.
    """
    shares = []
    for counts in _counts_per_score(id_scores, ood_scores):
        above = counts.flip(0).cumsum(0).to(torch.float64) / int(counts.sum())
        shares.append(torch.cat([above.new_zeros(1), above]))
    return RocCurve(*shares)


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the area under the receiver operating characteristic.

    ``P(s_ood > s_id) + ½ P(s_ood = s_id)`` over all pairs, from ranks in O(N log N).

    Args:
        id_scores: scores of in-distribution rows (N,), higher = more OOD.
        ood_scores: scores of out-of-distribution rows (M,).

    Returns:
        A share in [0, 1]; 0.5 = no separation.

    Raises:
        DataError: if either is empty, not a vector or has a NaN or infinite score.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    negatives, positives = _counts_per_score(id_scores, ood_scores)
    below = negatives.cumsum(0) - negatives
    # Integers: twice the number of won pairs is exact, and each tie counts one.
    doubled = (positives * (2 * below + negatives)).sum().item()
    return doubled / (2 * int(negatives.sum()) * int(positives.sum()))


def aupr(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the average precision, the area under the precision-recall steps.

    ``Σ_t (R_t - R_{t-1}) P_t`` over the distinct scores t from high to low, where P_t and R_t are
    precision and recall of calling every row with ``s ≥ t`` out-of-distribution. Rows with equal
    scores enter together. The value of a score without any information is M / (N + M).

    Args:
        id_scores: scores of in-distribution rows (N,), higher = more OOD.
        ood_scores: scores of out-of-distribution rows (M,).

    Returns:
        A share in (0, 1].

    Raises:
        DataError: if either is empty, not a vector or has a NaN or infinite score.
    """
    negatives, positives = (n.flip(0) for n in _counts_per_score(id_scores, ood_scores))
    found = positives.cumsum(0).to(torch.float64)
    precision = found / (found + negatives.cumsum(0))
    return ((positives * precision).sum() / positives.sum()).item()


def fpr_at_recall(id_scores: ArrayLike, ood_scores: ArrayLike, recall: float = 0.95) -> float:
    """Return the share of OOD rows accepted when a given share of in-distribution rows is kept.

    The threshold t is the smallest in-distribution score with ``#{s_id ≤ t} / N ≥ recall``; a row
    is accepted as in-distribution if its score is at most t. The value is ``#{s_ood ≤ t} / M``,
    "FPR95" at the default: the positives of this rate are the in-distribution rows, those of
    :func:`auroc` and :func:`aupr` the OOD rows. Rows that tie with the threshold are accepted on
    both sides, so the recall is never below what was asked and ties count against the score.

    Args:
        id_scores: scores of in-distribution rows (N,), higher = more OOD.
        ood_scores: scores of out-of-distribution rows (M,).
        recall: share of in-distribution rows to keep, in (0, 1].

    Returns:
        A share in [0, 1], lower = better.

    Raises:
        DataError: if either is empty, not a vector or has a NaN or infinite score.
        ConfigError: if the recall is not in (0, 1].

    Source: Liang et al. 2018, "Enhancing the reliability of out-of-distribution image detection in
    neural networks" (FPR at 95 % TPR).
    """
    inside = as_vector(id_scores, "id_scores")
    outside = as_vector(ood_scores, "ood_scores")
    kept = count_for_share(recall, inside.numel(), "recall")
    threshold = inside.sort().values[kept - 1]
    return (outside <= threshold).to(torch.float64).mean().item()


def _counts_per_score(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return how many ID and OOD rows have each distinct score, ascending, int64."""
    inside = as_vector(id_scores, "id_scores")
    outside = as_vector(ood_scores, "ood_scores")
    values, group = torch.cat([inside, outside]).unique(return_inverse=True)
    split = inside.numel()
    negatives = torch.bincount(group[:split], minlength=values.numel())
    positives = torch.bincount(group[split:], minlength=values.numel())
    return negatives, positives
