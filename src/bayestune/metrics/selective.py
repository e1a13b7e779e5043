"""Selective prediction: what the error becomes when the least confident rows are left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.metrics.inputs import (
    ArrayLike,
    as_correct,
    as_vector,
    count_for_share,
    same_rows,
)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The selective risk at every coverage.

    Attributes:
        coverage: share of rows that are answered, k / N for k = 1 to N, float64 (N,).
        risk: expected share of errors among the k most confident rows, float64 (N,).
        threshold: confidence of the k-th row, float64 (N,), descending.
        attainable: whether accepting ``confidence ≥ threshold`` answers exactly k rows, bool (N,);
            false inside a group of equal confidences.
    """

    coverage: Tensor
    risk: Tensor
    threshold: Tensor
    attainable: Tensor


def risk_coverage_curve(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve of a confidence score.

    ``risk_k = E[errors among the k most confident rows] / k``, the expectation being over a random
    order of rows with equal confidence, so that the curve does not depend on the order in which
    rows are given: with E₀ errors in the n₀ rows before a group of m rows with e errors,
    ``risk_k = (E₀ + (k - n₀) e / m) / k``.

    Args:
        confidence: any finite score (N,), higher = more confident.
        correct: whether the prediction is right (N,), booleans or 0 and 1.

    Returns:
        Coverage, risk and threshold for k = 1 to N.

    Raises:
        DataError: if the rows are empty, of different lengths or not numbers.

    Source: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification".
    """
    c, a = as_vector(confidence, "confidence"), as_correct(correct)
    same_rows(c, a, "confidence", "correct")
    rows = c.numel()
    values, group, sizes = c.unique(return_inverse=True, return_counts=True)
    errors = torch.bincount(group, weights=1 - a, minlength=values.numel())
    # unique ascends; the most confident come first here.
    values, sizes, errors = values.flip(0), sizes.flip(0), errors.flip(0)
    of_row = torch.repeat_interleave(torch.arange(values.numel()), sizes)  # (N,)
    last, total = sizes.cumsum(0), errors.cumsum(0)
    k = torch.arange(1, rows + 1)
    inside = k - (last - sizes)[of_row]  # 1 to m within the group
    expected = (total - errors)[of_row] + inside * errors[of_row] / sizes[of_row]
    return RiskCoverage(
        coverage=k.to(torch.float64) / rows,
        risk=expected / k,
        threshold=values[of_row],
        attainable=k == last[of_row],
    )


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Return the area under the risk-coverage curve, lower = better.

    ``1/N Σ_k risk_k`` over all coverages k / N, with the risk of :func:`risk_coverage_curve`.

    Args:
        confidence: any finite score (N,), higher = more confident.
        correct: whether the prediction is right (N,), booleans or 0 and 1.

    Returns:
        An error rate in [0, 1].

    Raises:
        DataError: if the rows are empty, of different lengths or not numbers.

    Source: Geifman et al. 2019, "Bias-reduced uncertainty estimation for deep neural classifiers".
    """
    return risk_coverage_curve(confidence, correct).risk.mean().item()


def e_aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Return the area under the risk-coverage curve in excess of the best order of the same rows.

    ``aurc - 1/N Σ_{k > N-E} (k - (N - E)) / k`` with E errors: the best order answers all right
    rows first. This is the exact optimum for N rows, not its limit ``r + (1 - r) ln(1 - r)``, so a
    perfect order gives 0.

    Args:
        confidence: any finite score (N,), higher = more confident.
        correct: whether the prediction is right (N,), booleans or 0 and 1.

    Returns:
        An excess error rate in [0, 1].

    Raises:
        DataError: if the rows are empty, of different lengths or not numbers.

    Source: Geifman et al. 2019, "Bias-reduced uncertainty estimation for deep neural classifiers".
    """
    risk = risk_coverage_curve(confidence, correct).risk
    right = int(as_correct(correct).sum())
    k = torch.arange(1, risk.numel() + 1)
    return (risk - (k - right).clamp(min=0) / k.to(torch.float64)).mean().item()


def risk_at_coverage(confidence: ArrayLike, correct: ArrayLike, coverage: float) -> float:
    """Return the selective risk when at least the given share of rows is answered.

    Reads :func:`risk_coverage_curve` at the smallest k with ``k / N ≥ coverage``; inside a group of
    equal confidences this is the expected risk of answering a random part of the group.

    Args:
        confidence: any finite score (N,), higher = more confident.
        correct: whether the prediction is right (N,), booleans or 0 and 1.
        coverage: share of rows to answer, in (0, 1].

    Returns:
        An error rate in [0, 1].

    Raises:
        DataError: if the rows are empty, of different lengths or not numbers.
        ConfigError: if the coverage is not in (0, 1].
    """
    risk = risk_coverage_curve(confidence, correct).risk
    return risk[count_for_share(coverage, risk.numel(), "coverage") - 1].item()


def coverage_at_risk(confidence: ArrayLike, correct: ArrayLike, risk: float) -> float:
    """Return the largest share of rows that one threshold answers at no more than the given risk.

    ``max {k / N : risk_k ≤ risk}`` over the k that ``confidence ≥ threshold`` can attain, so groups
    of equal confidence are answered whole or not at all. This is a description of these rows;
    a threshold chosen on them carries no guarantee for others.

    Args:
        confidence: any finite score (N,), higher = more confident.
        correct: whether the prediction is right (N,), booleans or 0 and 1.
        risk: error rate that is accepted, in [0, 1].

    Returns:
        A share in [0, 1]; 0 if no threshold has so small a risk.

    Raises:
        DataError: if the rows are empty, of different lengths or not numbers.
        ConfigError: if the risk is not in [0, 1].
    """
    if not 0 <= risk <= 1:
        raise ConfigError(f"risk = {risk!r} given, expected an error rate from 0 to 1.")
    curve = risk_coverage_curve(confidence, correct)
    allowed = curve.coverage[curve.attainable & (curve.risk <= risk)]
    return allowed.max().item() if allowed.numel() else 0.0
