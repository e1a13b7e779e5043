"""Ranks under a reference, and the stability index, against scipy-free closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from bayestune.errors import DataError
from bayestune.metrics.drift import BINS, POINTS, quantile_points, rank, stability_index


def test_ranks_are_the_distribution_function() -> None:
    """Of an exponential variable, F(s) = 1 − exp(−s)."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    points = quantile_points(-torch.log1p(-u))
    assert len(points) == POINTS and points == sorted(points)
    for s in (0.02, 0.3, 1.0, 2.0):
        assert rank(s, points) == pytest.approx(1 - math.exp(-s), abs=0.004)
    assert rank(-1.0, points) == 0 and rank(99.0, points) == 1
    for i, point in enumerate(points):
        assert rank(point, points) == pytest.approx(i / (POINTS - 1))


def test_equal_scores_stand_in_the_middle_and_constants_nowhere() -> None:
    points = quantile_points(torch.tensor([0.0] * 50 + [1.0, 2.0, 3.0, 4.0, 5.0] * 10))
    first = [i for i, q in enumerate(points) if q == 0]
    assert rank(0.0, points) == pytest.approx((first[0] + first[-1]) / 2 / (POINTS - 1))
    assert rank(0.0, quantile_points(torch.zeros(9))) is None
    with pytest.raises(DataError):
        quantile_points(torch.empty(0))


def test_the_index_is_the_symmetric_divergence() -> None:
    even = [(i + 0.5) / 1000 for i in range(1000)]
    assert stability_index(even) == pytest.approx(0, abs=1e-12)
    share = torch.tensor([0.3, 0.2] + [0.0625] * 8, dtype=torch.float64)
    ranks = [(b + 0.5) / BINS for b, s in enumerate(share.tolist()) for _ in range(int(1600 * s))]
    uniform = torch.full_like(share, 1 / BINS)
    both = (share * (share / uniform).log()).sum() + (uniform * (uniform / share).log()).sum()
    assert stability_index(ranks) == pytest.approx(float(both), rel=1e-9)
    assert stability_index([1.0] * 10) > 2
    with pytest.raises(DataError):
        stability_index([])


def test_rows_of_the_reference_give_about_nine_over_n() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [
        stability_index(torch.rand(1000, generator=generator, dtype=torch.float64).tolist())
        for _ in range(200)
    ]
    mean = sum(found) / len(found)
    # χ² with 9 degrees of freedom over n: its mean, at four standard errors
    assert abs(mean - 9 / 1000) < 4 * math.sqrt(2 * 9) / 1000 / math.sqrt(200) + 2e-4
