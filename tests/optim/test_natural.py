"""The natural gradient of deviations against the fixed point it is to reach."""

from __future__ import annotations

import torch

from bayestune.optim import step_deviations
from bayestune.posterior import bounds, diagonal

N, K, D = 200, 3, 5
KAPPA, VARIANCE = 0.3, torch.tensor(0.7, dtype=torch.float64)


def problem():
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(N, D, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1, 3, 10, 30])
    mean = torch.randn(K, D, generator=g, dtype=torch.float64) / 10
    labels = torch.randint(K, (N,), generator=g)
    return phi, mean, labels


def gradient(log_scale, phi, mean, labels):
    leaf = log_scale.clone().requires_grad_()
    mu, var = diagonal.logit_moments(phi, mean, leaf.exp())
    kl = diagonal.kl(mean, leaf.exp(), torch.zeros_like(mean), VARIANCE)
    loss = -bounds.jensen(mu, var, labels).mean() + KAPPA / N * kl
    return torch.autograd.grad(loss, leaf)[0]


def test_a_full_step_is_the_fixed_point_at_the_present_variances():
    phi, mean, labels = problem()
    log_scale = torch.full((K, D), -1.0, dtype=torch.float64)
    mu, var = diagonal.logit_moments(phi, mean, log_scale.exp())
    inflated = (mu + 0.5 * var).softmax(-1)
    expected = 1 / VARIANCE + inflated.T @ phi.square() / KAPPA
    step_deviations(log_scale, gradient(log_scale, phi, mean, labels), 1.0, KAPPA / N)
    torch.testing.assert_close((-2 * log_scale).exp(), expected)


def test_batches_average_to_the_stationary_point():
    phi, mean, labels = problem()
    log_scale = torch.full((K, D), -1.0, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    for step in range(600):
        rows = torch.randint(N, (16,), generator=g)
        grad = gradient(log_scale, phi[rows], mean, labels[rows])
        step_deviations(log_scale, grad, 0.1 * (1 - step / 600), KAPPA / N)
    there = log_scale.clone()
    for _ in range(200):
        step_deviations(there, gradient(there, phi, mean, labels), 0.5, KAPPA / N)
    assert gradient(there, phi, mean, labels).abs().max() < 1e-9
    assert (log_scale - there).abs().max() < 0.1


def test_a_noisy_gradient_cannot_make_a_precision_negative():
    log_scale = torch.zeros(1, 1)
    step_deviations(log_scale, torch.full((1, 1), -100.0), 1.0, 0.01)
    assert torch.isfinite(log_scale).all()
