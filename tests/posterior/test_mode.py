"""The mode of a last layer: the gradient vanishes, whatever the features' scales."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bayestune.posterior.mode import mode

N, K, D = 80, 3, 5
BY_CLASS = torch.tensor([[0.1], [1.0], [50.0]], dtype=torch.float64).expand(K, D)
BY_FEATURE = torch.logspace(-2, 2, K * D, dtype=torch.float64).view(K, D)


def problem(spread: float):
    g = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, spread, D, dtype=torch.float64)
    phi = torch.randn(N, D, generator=g, dtype=torch.float64) * scales + 3 * scales
    labels = torch.multinomial(torch.randn(N, K, generator=g).softmax(1), 1).squeeze(1)
    return phi, labels, torch.randn(K, D, generator=g, dtype=torch.float64)


def likelihood(labels):
    return lambda mu: mu.log_softmax(1).gather(1, labels[:, None]).sum()


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("tau", [0.01, 10.0, BY_CLASS, BY_FEATURE])
def test_the_gradient_vanishes_at_the_mode(spread, tau):
    phi, labels, centre = problem(spread)
    W = mode(phi, torch.zeros_like(centre), centre, tau, likelihood(labels), tolerance=1e-9)
    W.requires_grad_()
    penalty = 0.5 * (tau * (W - centre).square()).sum()
    (slope,) = torch.autograd.grad(likelihood(labels)(phi @ W.T) - penalty, W)
    assert slope.norm() < 1e-5 * phi.norm()


def test_it_is_the_logistic_regression_of_another_library():
    phi, labels, _ = problem(0.0)
    zero = torch.zeros(K, D, dtype=torch.float64)
    W = mode(phi, zero, zero, 0.5, likelihood(labels), tolerance=1e-9)
    peer = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10000)
    peer.fit(phi.numpy(), labels.numpy())
    torch.testing.assert_close(W, torch.from_numpy(peer.coef_), rtol=1e-4, atol=1e-4)


def test_where_it_starts_does_not_matter():
    phi, labels, centre = problem(1.0)
    found = [
        mode(phi, start, centre, 1.0, likelihood(labels), tolerance=1e-9)
        for start in (torch.zeros_like(centre), 5 * centre)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
