"""The evidence where it is known, and its fixed point where it is stationary."""

from __future__ import annotations

import math

import pytest
import torch

from bayestune.posterior import curvature, dense
from bayestune.posterior.evidence import log_evidence, updated_precision
from bayestune.posterior.laplace import Block, Given
from bayestune.posterior.mode import mode

N, K, D = 40, 3, 4


def linear_gaussian(tau):
    """A model with a quadratic log likelihood: its mode, likelihood there, and log p(y)."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, generator=g, dtype=torch.float64)
    M = torch.randn(1, D, generator=g, dtype=torch.float64)
    y = X @ torch.randn(D, generator=g, dtype=torch.float64) + torch.randn(N, generator=g).double()
    prior = torch.as_tensor(tau, dtype=torch.float64).expand(D)
    law = torch.distributions.MultivariateNormal(
        (X @ M.T).squeeze(1), torch.eye(N).double() + (X / prior) @ X.T
    )
    at = torch.linalg.solve(X.T @ X + prior.diag(), X.T @ y + prior * M[0])[None]
    likelihood = -0.5 * (y - X @ at[0]).square().sum() - 0.5 * N * math.log(2 * math.pi)
    return at, M, torch.linalg.eigvalsh(X.T @ X), likelihood, law.log_prob(y)


@pytest.mark.parametrize("tau", [0.1, 1.0, 30.0])
def test_evidence_of_a_gaussian_likelihood_is_the_known_answer(tau):
    at, M, values, likelihood, expected = linear_gaussian(tau)
    torch.testing.assert_close(log_evidence(likelihood, at, M, values, tau), expected)


def test_the_fixed_point_is_where_the_evidence_of_a_gaussian_likelihood_is_largest():
    tau = torch.tensor(1.0, dtype=torch.float64)
    one = torch.zeros(1, D, dtype=torch.int64)
    for _ in range(300):
        at, M, values, _, _ = linear_gaussian(tau)
        # Only the sum over a group counts, and that of the diagonal is that of the eigenvalues.
        variance = (1 / (values + tau))[None]
        tau = updated_precision(at, M, variance, tau.expand(1, D), one)[0, 0]
    best = linear_gaussian(tau)[-1]
    for factor in (0.9, 1.1):
        assert linear_gaussian(factor * tau)[-1] < best
    grid = torch.logspace(-2, 2, 41).tolist()
    assert all(linear_gaussian(t)[-1] <= best for t in grid)


def classes(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(300, D, generator=g, dtype=torch.float64)
    scale = torch.tensor([[0.1], [1.0], [3.0]], dtype=torch.float64)
    truth = scale * torch.randn(K, D, generator=g, dtype=torch.float64)
    labels = torch.multinomial((phi @ truth.T).softmax(1), 1, generator=g).squeeze(1)
    return phi, labels


GROUPS = {
    "shared": torch.zeros(K, D, dtype=torch.int64),
    "class": torch.arange(K)[:, None].expand(K, D),
    "feature": torch.tensor([0, 0, 1, 1]).expand(K, D),
}


def at_mode(phi, labels, tau):
    def likelihood(mu):
        return mu.log_softmax(1).gather(1, labels[:, None]).sum()

    zero = torch.zeros(K, D, dtype=torch.float64)
    W = mode(phi, zero, zero, tau, likelihood, tolerance=1e-9)
    own = curvature.bernoulli((phi @ W.T).softmax(1))
    return W, zero, own, likelihood(phi @ W.T)


def test_a_precision_has_the_determinants_of_the_formula():
    phi, labels = classes()
    W, zero, own, likelihood = at_mode(phi, labels, 0.3)
    values = Block.of(phi, own).values
    log_det = (values + 0.3).log().sum() - K * D * math.log(0.3)
    expected = likelihood - 0.5 * (log_det + 0.3 * W.square().sum())
    torch.testing.assert_close(log_evidence(likelihood, W, zero, values, 0.3), expected)


@pytest.mark.parametrize("groups", list(GROUPS))
def test_the_fixed_point_raises_the_evidence_of_a_classifier(groups):
    phi, labels = classes()
    if groups == "feature":
        phi[:, :2] *= 10  # features of two scales
    tau = torch.full((K, D), 30.0, dtype=torch.float64)
    found = []
    for _ in range(60):
        W, zero, own, likelihood = at_mode(phi, labels, tau)
        L = Given.of(phi, own, tau).factor
        log_det = 2 * torch.linalg.slogdet(L).logabsdet.sum() + tau.log().sum()
        found.append(float(likelihood + 0.5 * (log_det - (tau * W.square()).sum())))
        tau = updated_precision(W, zero, dense.marginal_scale(L).square(), tau, GROUPS[groups])
    assert found[-1] > found[0] + 0.5
    assert abs(found[-1] - found[-2]) < 1e-3
    for group in GROUPS[groups].unique():
        assert len(tau[GROUPS[groups] == group].unique()) == 1
    if groups == "class":  # the class whose weights are small is held closest to the prior
        assert tau[0, 0] > 3 * tau[2, 0]
    if groups == "feature":
        assert tau[0, 0] > 10 * tau[0, 2]
