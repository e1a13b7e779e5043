"""Bayesian linear regression: posterior and evidence against brute force and against the ELBO."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from bayestune.posterior import dense, diagonal, regression
from bayestune.posterior.conjugate import LinearRegression

N, D, NOISE, PRECISION = 40, 5, 0.4, 2.5


@pytest.fixture(params=[False, True], ids=["equal rows", "weighted rows"])
def rows(request) -> tuple[Tensor, Tensor, Tensor]:
    """Features, numbers and row weights."""
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(N, D, generator=generator, dtype=torch.float64)
    w = torch.randn(D, generator=generator, dtype=torch.float64)
    y = phi @ w + NOISE * torch.randn(N, generator=generator, dtype=torch.float64)
    weights = torch.rand(N, generator=generator, dtype=torch.float64) + 0.2
    return phi, y, weights if request.param else torch.ones_like(weights)


def by_hand(phi: Tensor, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and covariance by one inverse."""
    R = torch.diag(r / NOISE**2)
    covariance = torch.linalg.inv(phi.T @ R @ phi + PRECISION * torch.eye(D, dtype=phi.dtype))
    return covariance @ phi.T @ R @ y, covariance


def test_posterior(rows) -> None:
    phi, y, r = rows
    mean, covariance = by_hand(phi, y, r)
    found = LinearRegression.of(phi, y, r)
    torch.testing.assert_close(found.mean(NOISE, PRECISION), mean)
    root = found.basis * found.scale(NOISE, PRECISION)
    torch.testing.assert_close(root @ root.T, covariance)


def test_evidence_is_the_density_of_the_numbers(rows) -> None:
    phi, y, r = rows
    covariance = torch.diag(NOISE**2 / r) + phi @ phi.T / PRECISION
    expected = multivariate_normal(torch.zeros(N).numpy(), covariance.numpy()).logpdf(y.numpy())
    found = LinearRegression.of(phi, y, r).log_evidence(NOISE, PRECISION)
    assert float(found) == pytest.approx(float(expected), rel=1e-10)


def elbo(phi, y, r, mean, spread, posterior) -> Tensor:
    mu, var = posterior.logit_moments(phi, mean, spread)
    scale = NOISE / r.sqrt()[:, None]
    likelihood = regression.gaussian(mu, var, y[:, None], scale).sum()
    prior = torch.tensor(1 / PRECISION, dtype=phi.dtype)
    return likelihood - posterior.kl(mean, spread, torch.zeros_like(mean), prior)


def optimum(phi, y, r, posterior, start: Tensor, spread_of) -> tuple[Tensor, Tensor, Tensor]:
    """Maximise the ELBO by L-BFGS; return mean, spread and the bound."""
    mean, raw = torch.zeros(1, D, dtype=phi.dtype, requires_grad=True), start.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [mean, raw], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -elbo(phi, y, r, mean, spread_of(raw), posterior)
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        bound = elbo(phi, y, r, mean, spread_of(raw), posterior)
    return mean.detach(), spread_of(raw).detach(), bound


def test_the_elbo_of_the_dense_family_ends_at_the_posterior_and_the_evidence(rows) -> None:
    phi, y, r = rows
    start = 0.3 * torch.eye(D, dtype=phi.dtype)[None]
    mean, factor, bound = optimum(phi, y, r, dense, start, lambda raw: raw)
    found = LinearRegression.of(phi, y, r)
    torch.testing.assert_close(mean[0], found.mean(NOISE, PRECISION), rtol=1e-5, atol=1e-7)
    _, covariance = by_hand(phi, y, r)
    torch.testing.assert_close(factor[0] @ factor[0].T, covariance, rtol=1e-4, atol=1e-7)
    assert float(bound) == pytest.approx(float(found.log_evidence(NOISE, PRECISION)), abs=1e-6)


def test_the_elbo_of_the_diagonal_family_ends_at_the_diagonal_scale(rows) -> None:
    phi, y, r = rows
    start = torch.full((1, D), -1.0, dtype=phi.dtype)
    mean, scale, bound = optimum(phi, y, r, diagonal, start, torch.exp)
    found = LinearRegression.of(phi, y, r)
    torch.testing.assert_close(mean[0], found.mean(NOISE, PRECISION), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        scale[0], found.diagonal_scale(NOISE, PRECISION), rtol=1e-5, atol=1e-7
    )
    assert float(bound) < float(found.log_evidence(NOISE, PRECISION))
