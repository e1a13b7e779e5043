"""Calibration errors: how far confidence is from the share of right answers, bin by bin.

All of them depend on the bins and, with few rows per bin, are biased upwards: state the number of
bins and of rows with the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayestune.errors import DataError
from bayestune.metrics.classification import top_label
from bayestune.metrics.inputs import (
    NEGATIVE_TOLERANCE,
    ROW_SUM_TOLERANCE,
    ArrayLike,
    as_correct,
    as_predictions,
    as_vector,
    check_choice,
    check_count,
    same_rows,
)

Binning = Literal["right_closed", "torchmetrics"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Rows grouped by confidence into B bins.

    Attributes:
        counts: rows in each bin, int64 (B,).
        confidence: mean confidence of each bin, float64 (B,); NaN where the bin is empty.
        accuracy: share of right answers in each bin, float64 (B,); NaN where the bin is empty.
        edges: borders of the bins, float64 (B + 1,), ascending.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    edges: Tensor

    @property
    def gap(self) -> Tensor:
        """``|accuracy - confidence|`` of each bin, float64 (B,); 0 where the bin is empty."""
        return (self.accuracy - self.confidence).abs().masked_fill(self.counts == 0, 0.0)

    @property
    def ece(self) -> float:
        """``Σ_b n_b/N · gap_b``, the expected calibration error over these bins."""
        return (self.counts * self.gap).sum().item() / int(self.counts.sum())

    @property
    def mce(self) -> float:
        """``max_b gap_b`` over the bins that are not empty."""
        return self.gap.max().item()


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """Return the reliability diagram over equal-width, right-closed bins.

    Bin b holds the rows with ``b/B < c ≤ (b+1)/B``; a confidence of exactly 0 belongs to the first
    bin, one of exactly 1 to the last. Borders are compared in float64: a float32 confidence of
    0.2 is a little above 3/15 and falls into the fourth of fifteen bins.

    Args:
        confidence: probability of the predicted class (N,).
        correct: whether the prediction is right (N,), booleans or 0 and 1.
        bins: number of bins B.

    Returns:
        Counts, mean confidence, accuracy and borders of the B bins.

    Raises:
        DataError: if the rows are empty, of different lengths or no probabilities.
        ConfigError: if ``bins`` is not a positive integer.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 2.
    """
    check_count(bins, "bins")
    c, a = _confidence(confidence, correct)
    edges = _edges(bins)
    return _group(c, a, _right_closed(c, edges), edges)


def ece(
    probs: ArrayLike, labels: ArrayLike, bins: int = 15, binning: Binning = "right_closed"
) -> float:
    """Return the expected calibration error of the predicted class.

    ``Σ_b n_b/N |acc_b - conf_b|`` over equal-width bins; empty bins weigh nothing.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        bins: number of bins B.
        binning: ``"right_closed"`` is the definition (see :func:`reliability`).
            ``"torchmetrics"`` is for reproducing numbers published with that library (seen up to
            1.9): bins are closed on the left, with float32 borders, so that a confidence of
            exactly 1 falls into an extra bin B + 1 of its own (its issue 3510).

    Returns:
        A share in [0, 1].

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if ``bins`` is not a positive integer or ``binning`` is not known.

    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 3.
    """
    return _top_label_bins(probs, labels, bins, binning).ece


def mce(
    probs: ArrayLike, labels: ArrayLike, bins: int = 15, binning: Binning = "right_closed"
) -> float:
    """Return the largest calibration gap of any bin that is not empty.

    ``max_b |acc_b - conf_b|`` over equal-width bins. A bin of one row counts as much as any other.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        bins: number of bins B.
        binning: as in :func:`ece`.

    Returns:
        A share in [0, 1].

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if ``bins`` is not a positive integer or ``binning`` is not known.

    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 5.
    """
    return _top_label_bins(probs, labels, bins, binning).mce


def adaptive_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error of the predicted class over bins of equal mass.

    Rows with the same confidence are never split, so the value does not depend on the order of
    the rows: all rows that share the ascending ranks f to l (from 0) go to bin
    ``⌊B · (f + l + 1) / 2N⌋``. Without ties the sizes of any two bins differ by one at most; with
    ties bins may be larger or empty.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        bins: number of bins B.

    Returns:
        A share in [0, 1].

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if ``bins`` is not a positive integer.

    Source: Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural
    language processing models". (The ACE of Nixon et al. 2019 averages such an error
    over all classes; this one looks at the predicted class.)
    """
    check_count(bins, "bins")
    confidence, correct = top_label(probs, labels)
    rows = confidence.numel()
    _, group, sizes = confidence.unique(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0) - 1
    middle = 2 * last - sizes + 2  # f + l + 1 of each group of equal confidences
    return _group(confidence, correct, (bins * middle // (2 * rows))[group], _edges(bins)).ece


def classwise_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the calibration error of every class's probability, averaged over the classes.

    ``1/K Σ_k Σ_b n_kb/N |share of label k in bin b - mean of p_ik in bin b|``, with the bins of
    :func:`reliability` applied to each column. Classes without a row count like the others. With
    many classes most probabilities are near 0 and so is the value.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        bins: number of bins B.

    Returns:
        A share in [0, 1].

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if ``bins`` is not a positive integer.

    Source: Kull et al. 2019, "Beyond temperature scaling", section 2.
    """
    check_count(bins, "bins")
    p, y = as_predictions(probs, labels)
    edges = _edges(bins)
    total = 0.0
    # One class at a time: an (N, K) table of bins would not fit for many rows and classes.
    for k, column in enumerate(p.T.contiguous()):
        total += _group(column, (y == k).to(p.dtype), _right_closed(column, edges), edges).ece
    return total / p.shape[1]


def _confidence(confidence: ArrayLike, correct: ArrayLike) -> tuple[Tensor, Tensor]:
    c, a = as_vector(confidence, "confidence"), as_correct(correct)
    same_rows(c, a, "confidence", "correct")
    outside = (c < -NEGATIVE_TOLERANCE) | (c > 1 + ROW_SUM_TOLERANCE)
    if bool(outside.any()):
        row = int(torch.nonzero(outside)[0])
        raise DataError(
            f"confidence: row {row} is {c[row].item()}, expected a probability; "
            "pass the probability of the predicted class, not its logit."
        )
    return c, a


def _edges(bins: int) -> Tensor:
    # A division, not linspace: b/B is then the float64 nearest to the border.
    return torch.arange(bins + 1, dtype=torch.float64) / bins


def _right_closed(values: Tensor, edges: Tensor) -> Tensor:
    index = torch.bucketize(values, edges[1:])
    # Rows may sum to a little more than 1, and so may a confidence.
    return index.clamp(max=edges.numel() - 2)


def _left_closed_with_phantom(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float32)
    index = torch.bucketize(values.to(torch.float32), edges, right=True) - 1
    top = torch.tensor([torch.inf], dtype=torch.float64)
    return index.clamp(min=0), torch.cat([edges.to(torch.float64), top])


def _group(confidence: Tensor, correct: Tensor, index: Tensor, edges: Tensor) -> Reliability:
    bins = edges.numel() - 1
    counts = torch.bincount(index, minlength=bins)
    return Reliability(
        counts=counts,
        # 0 / 0 is the NaN that marks an empty bin.
        confidence=torch.bincount(index, weights=confidence, minlength=bins) / counts,
        accuracy=torch.bincount(index, weights=correct, minlength=bins) / counts,
        edges=edges,
    )


def _top_label_bins(
    probs: ArrayLike, labels: ArrayLike, bins: int, binning: Binning
) -> Reliability:
    check_count(bins, "bins")
    check_choice(binning, "binning", ("right_closed", "torchmetrics"))
    confidence, correct = top_label(probs, labels)
    if binning == "right_closed":
        return reliability(confidence, correct, bins)
    index, edges = _left_closed_with_phantom(confidence, bins)
    return _group(confidence, correct, index, edges)
