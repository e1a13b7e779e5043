"""The ELBO as a whole: where its optimum must lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from bayestune.posterior import bounds, dense, diagonal

PRIOR = torch.tensor(1.5, dtype=torch.float64)


def optimise(loss, parameters: list[Tensor]) -> None:
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=400,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(3):
        solver.step(closure)


def data(n: int, k: int, d: int):
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(n, d, generator=g, dtype=torch.float64)
    return phi, torch.randint(k, (n,), generator=g)


@pytest.mark.parametrize("family", [diagonal, dense], ids=["diagonal", "dense"])
def test_the_stationary_covariance_of_jensen_is_the_fixed_point(family):
    K, D = 3, 2
    phi, labels = data(20, K, D)
    mean = torch.zeros(K, D, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(D, dtype=torch.float64)
    start = torch.ones(K, D).double() if family is diagonal else eye.repeat(K, 1, 1)
    spread = start.clone().requires_grad_()

    def loss():
        mu, var = family.logit_moments(phi, mean, spread)
        kl = family.kl(mean, spread, torch.zeros(K, D), PRIOR)
        return kl - bounds.jensen(mu, var, labels).sum()

    optimise(loss, [mean, spread])
    with torch.no_grad():
        mu, var = family.logit_moments(phi, mean, spread)
        p = (mu + 0.5 * var).softmax(-1)
        # The mean solves the same stationarity: prior pull against the residual of the tilted p.
        residual = torch.nn.functional.one_hot(labels, K) - p
        torch.testing.assert_close(mean / PRIOR, residual.T @ phi, rtol=1e-5, atol=1e-6)
        if family is diagonal:
            precision = 1 / PRIOR + p.T @ phi**2
            torch.testing.assert_close(spread**-2, precision, rtol=1e-5, atol=1e-6)
        else:
            precision = eye / PRIOR + torch.einsum("nk,ni,nj->kij", p, phi, phi)
            inverse = torch.linalg.inv(spread @ spread.mT)
            torch.testing.assert_close(inverse, precision, rtol=1e-5, atol=1e-6)


def test_the_optimum_of_the_true_elbo_is_recovered():
    """Two classes, one feature: the expectation is a one-dimensional integral that numpy can do."""
    phi, labels = data(12, 2, 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    x, sign = phi[:, 0].numpy(), 2 * labels.numpy() - 1

    def negative_elbo(theta):
        m, log_s = theta[:2], theta[2:]
        s2 = np.exp(2 * log_s)
        d = np.outer((m[1] - m[0]) * x, np.ones(80))
        d = d + np.sqrt(s2.sum()) * np.abs(x)[:, None] * nodes
        likelihood = -(np.logaddexp(0, -sign[:, None] * d) @ weights).sum()
        prior = PRIOR.item()
        kl = 0.5 * ((s2 + m**2) / prior - 1 + np.log(prior) - 2 * log_s).sum()
        return kl - likelihood

    reference = minimize(negative_elbo, np.zeros(4), method="BFGS", tol=1e-9).x

    mean = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    log_scale = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(4096, dtype=torch.float64)
    noise = torch.special.ndtri(sobol.clamp(1e-9, 1 - 1e-9)).unsqueeze(1)

    def loss():
        mu, var = diagonal.logit_moments(phi, mean, log_scale.exp())
        kl = diagonal.kl(mean, log_scale.exp(), torch.zeros(2, 1), PRIOR)
        return kl - bounds.monte_carlo(mu, var, labels, noise).sum()

    optimise(loss, [mean, log_scale])
    found = torch.cat([mean, log_scale]).detach().flatten().numpy()
    np.testing.assert_allclose(found, reference, atol=2e-3)


def test_jensen_shrinks_the_posterior_below_the_true_optimum():
    phi, labels = data(200, 3, 2)
    spreads = []
    noise = torch.randn(64, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for bound in (
        bounds.jensen,
        lambda mu, var, y: bounds.monte_carlo(mu, var, y, noise),
    ):
        mean = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        log_scale = torch.full((3, 2), -1.0, dtype=torch.float64, requires_grad=True)

        def loss(bound=bound, mean=mean, log_scale=log_scale):
            mu, var = diagonal.logit_moments(phi, mean, log_scale.exp())
            kl = diagonal.kl(mean, log_scale.exp(), torch.zeros(3, 2), PRIOR)
            return kl - bound(mu, var, labels).sum()

        optimise(loss, [mean, log_scale])
        spreads.append(log_scale.detach().exp())
    assert (spreads[0] < spreads[1]).all()
