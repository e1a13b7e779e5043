from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from bayestune.errors import NumericsError
from bayestune.posterior import projection

D = 5


def features(n: int, seed: int = 0) -> Tensor:
    """Correlated features of very different spreads around a distant mean."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))[0]
    return torch.randn(n, D, generator=g, dtype=torch.float64) * scales @ mixing + 50


def test_features_are_white_in_the_axes() -> None:
    phi = features(400)
    found = projection.measure(phi, 3)
    x = projection.project(phi, found)
    torch.testing.assert_close(x.T @ x / 400, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(x.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.axes.T @ found.axes, torch.eye(3, dtype=torch.float64))
    # They are the leading ones: what they leave is the sum of the smallest eigenvalues.
    values = torch.linalg.eigvalsh(torch.cov(phi.T, correction=0))
    torch.testing.assert_close(found.deviations.square(), values.flip(0)[:3])
    torch.testing.assert_close(found.rest, values[:2].mean())


@pytest.mark.parametrize("axes", [2, D])
def test_a_density_in_the_axes_becomes_one_of_the_features(axes) -> None:
    phi = features(60)
    found = projection.measure(phi, axes)
    x = projection.project(phi, found)
    white = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    V, rest = found.axes, found.rest
    off = torch.eye(D, dtype=torch.float64) - V @ V.T
    covariance = V @ torch.diag(found.deviations**2) @ V.T + rest * off
    expected = multivariate_normal(found.centre.numpy(), covariance.numpy()).logpdf(phi.numpy())
    actual = white + projection.log_rest(phi, found)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "most", "least", "expected"),
    [(400, 3, 1, 3), (400, 99, 1, D), (12, 99, 1, 3), (12, 2, 1, 2), (12, 99, 4, 4), (2, 99, 4, 1)],
)
def test_few_rows_give_few_axes(rows, most, least, expected) -> None:
    assert projection.measure(features(rows), most, least).axes.shape == (D, expected)


def test_fewer_rows_than_features_give_the_same_axes() -> None:
    phi = torch.cat(
        [features(12), 0.01 * torch.randn(12, 20, generator=torch.Generator().manual_seed(2))], 1
    )
    found = projection.measure(phi, 3)
    values, vectors = torch.linalg.eigh(torch.cov(phi.T, correction=0))
    torch.testing.assert_close(found.deviations.square(), values.flip(0)[:3])
    torch.testing.assert_close(
        (found.axes.T @ vectors.flip(1)[:, :3]).abs(),
        torch.eye(3, dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )
    torch.testing.assert_close(found.rest, values[:-3].mean())


def test_constant_directions_are_no_axes() -> None:
    phi = features(40)
    phi[:, 1] = phi[:, 0]
    phi[:, 2] = 7.0
    found = projection.measure(phi, 99)
    assert found.axes.shape == (D, 3)
    assert 0 < float(found.rest) < float(found.deviations[-1] ** 2) * 1.001
    assert bool(torch.isfinite(projection.log_rest(phi + 1e-3, found)).all())


def test_it_keeps_the_dtype_and_the_digits() -> None:
    phi = features(200)
    low = projection.measure(phi.float() + 1000, 2)
    assert {part.dtype for part in low} == {torch.float32}
    torch.testing.assert_close(
        low.deviations.double(), projection.measure(phi, 2).deviations, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_features_without_a_spread_are_an_error(bad) -> None:
    phi = torch.zeros(8, D)
    phi[0] = bad
    phi[1] = bad
    with pytest.raises(NumericsError, match="all equal, NaN or infinite"):
        projection.measure(phi if bad else torch.full((8, D), 2.0), 2)
