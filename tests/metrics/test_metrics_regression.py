"""Scores of numbers against numerical integration, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayestune import metrics
from bayestune.errors import ConfigError, DataError

MEAN, STD = [0.0, 1.0, -2.0, 5.0], [1.0, 0.5, 3.0, 0.2]
TARGETS = [0.3, 1.0, 9.0, 3.0]


def distributions(dof: float | None) -> list:
    if dof is None:
        return [stats.norm(m, s) for m, s in zip(MEAN, STD, strict=True)]
    root = math.sqrt((dof - 2) / dof)
    return [stats.t(dof, m, s * root) for m, s in zip(MEAN, STD, strict=True)]


@pytest.mark.parametrize("dof", [None, 2.05, 2.5, 4.0, 7.3, 60.0, 5000.0])
def test_crps_is_its_integral(dof) -> None:
    found = metrics.crps(MEAN, STD, TARGETS, dof)
    for F, y, value in zip(distributions(dof), TARGETS, found.tolist(), strict=True):
        below = integrate.quad(lambda x, F=F: F.cdf(x) ** 2, -np.inf, y, epsabs=1e-11, limit=400)[0]
        above = integrate.quad(lambda x, F=F: F.sf(x) ** 2, y, np.inf, epsabs=1e-11, limit=400)[0]
        assert value == pytest.approx(below + above, rel=2e-5)


@pytest.mark.parametrize("dof", [None, 2.05, 4.0, 60.0])
def test_nll_is_the_density(dof) -> None:
    found = metrics.regression_nll(MEAN, STD, TARGETS, dof)
    expected = [-F.logpdf(y) for F, y in zip(distributions(dof), TARGETS, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    for F, s in zip(distributions(dof), STD, strict=True):
        assert F.std() == pytest.approx(s)  # what is given is the standard deviation


@pytest.mark.parametrize("dof", [None, 2.05, 2.5, 4.0, 60.0, 5000.0])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.999])
def test_the_interval_ends_at_the_quantiles(dof, level) -> None:
    """Targets a hair inside and outside of both ends."""
    for F, m, s in zip(distributions(dof), MEAN, STD, strict=True):
        ends = [F.ppf(0.5 - level / 2), F.ppf(0.5 + level / 2)]
        near = [m + (end - m) * (1 + e) for end in ends for e in (-1e-4, 1e-4)]
        found = metrics.inside_interval([m] * 4, [s] * 4, near, level, dof)
        assert found.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_coverage_of_true_distributions_is_the_level() -> None:
    y = stats.t(5, 0, 2).rvs(20_000, random_state=0)
    std = [2 * math.sqrt(5 / 3)] * len(y)
    share = metrics.inside_interval([0.0] * len(y), std, list(y), 0.9, 5.0).mean()
    assert float(share) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / len(y)))


def test_every_row_may_have_its_own_tails() -> None:
    dofs = [2.5, 4.0, 7.3, 60.0]
    for score in (metrics.crps, metrics.regression_nll):
        alone = [float(score(MEAN, STD, TARGETS, dof)[i]) for i, dof in enumerate(dofs)]
        np.testing.assert_allclose(score(MEAN, STD, TARGETS, dofs).numpy(), alone, rtol=1e-12)


def test_very_many_degrees_of_freedom_are_a_gaussian() -> None:
    for score in (metrics.crps, metrics.regression_nll):
        found, expected = score(MEAN, STD, TARGETS, 1e6), score(MEAN, STD, TARGETS)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_errors() -> None:
    np.testing.assert_allclose(metrics.squared_error(MEAN, TARGETS), [0.09, 0, 121, 4])
    np.testing.assert_allclose(metrics.absolute_error(MEAN, TARGETS), [0.3, 0, 11, 2])


def test_units() -> None:
    """In another unit errors and CRPS scale, the NLL moves by the logarithm, coverage stays."""
    mean, std, y = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, STD, TARGETS))
    for dof in (None, 3.0):
        moved = (1000 * mean + 7, 1000 * std, 1000 * y + 7, dof)
        torch.testing.assert_close(
            metrics.crps(*moved), 1000 * metrics.crps(mean, std, y, dof), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(
            metrics.regression_nll(*moved),
            metrics.regression_nll(mean, std, y, dof) + math.log(1000),
        )


def test_bad_input() -> None:
    with pytest.raises(DataError, match="std: row 1 is 0"):
        metrics.crps([0.0, 0.0], [1.0, 0.0], [0.0, 0.0])
    with pytest.raises(DataError, match="targets: row 0"):
        metrics.regression_nll([0.0], [1.0], [math.nan])
    with pytest.raises(DataError):
        metrics.squared_error([0.0, 1.0], [0.0])
    with pytest.raises(ConfigError, match="dof"):
        metrics.crps([0.0], [1.0], [0.0], 2.0)
    with pytest.raises(DataError, match="dof"):
        metrics.crps([0.0] * 3, [1.0] * 3, [0.0] * 3, [5.0, 5.0])
    with pytest.raises(ConfigError, match="level"):
        metrics.inside_interval([0.0], [1.0], [0.0], 1.0)
