from __future__ import annotations

import pytest
import torch

from bayestune.posterior import bounds


def problem(B: int, K: int, variance: float, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(B, K, generator=g, dtype=torch.float64)
    var = variance * 2 * torch.rand(B, K, generator=g, dtype=torch.float64)
    return mu, var, torch.randint(K, (B,), generator=g)


def expected_log_likelihood(mu, var, labels, draws: int, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, *mu.shape, generator=g, dtype=mu.dtype)
    each = (mu + var.sqrt() * noise).log_softmax(-1)[:, torch.arange(len(labels)), labels]
    return each.mean(0), each.std(0) / draws**0.5


@pytest.mark.parametrize("variance", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("K", [2, 7])
def test_jensen_is_below_the_expectation(K, variance):
    mu, var, labels = problem(12, K, variance)
    expectation, error = expected_log_likelihood(mu, var, labels, 40_000)
    assert (bounds.jensen(mu, var, labels) <= expectation + 4 * error).all()


def test_jensen_holds_for_correlated_logits():
    g = torch.Generator().manual_seed(0)
    L = torch.randn(4, 4, generator=g, dtype=torch.float64)
    mu = torch.randn(4, generator=g, dtype=torch.float64)
    z = mu + torch.randn(200_000, 4, generator=g, dtype=torch.float64) @ L.T
    for y in range(4):
        each = z.log_softmax(-1)[:, y]
        bound = bounds.jensen(mu[None], (L @ L.T).diagonal()[None], torch.tensor([y]))
        assert bound <= each.mean() + 4 * each.std() / 200_000**0.5


def test_jensen_is_tight_without_variance():
    mu, var, labels = problem(6, 5, 1.0)
    exact = mu.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(bounds.jensen(mu, 0 * var, labels), exact)
    gap = exact - bounds.jensen(mu, 1e-6 * var, labels)
    assert (gap > 0).all()
    assert (gap < 2e-6).all()


def test_jensen_slope_in_the_variance_is_half_the_inflated_softmax():
    mu, var, labels = problem(6, 5, 1.0)
    var.requires_grad_()
    (slope,) = torch.autograd.grad(bounds.jensen(mu, var, labels).sum(), var)
    torch.testing.assert_close(slope, -0.5 * (mu + 0.5 * var.detach()).softmax(-1))


def test_monte_carlo_agrees_with_plain_sampling_and_shares_noise():
    mu, var, labels = problem(5, 4, 3.0)
    expectation, error = expected_log_likelihood(mu, var, labels, 40_000)
    g = torch.Generator().manual_seed(9)
    noise = torch.randn(40_000, 1, 4, generator=g, dtype=torch.float64)
    estimate = bounds.monte_carlo(mu, var, labels, noise)
    assert ((estimate - expectation).abs() < 4 * 2**0.5 * error).all()
    repeated = bounds.monte_carlo(mu, var, labels, noise[:7].expand(7, 5, 4))
    torch.testing.assert_close(bounds.monte_carlo(mu, var, labels, noise[:7]), repeated)


def test_a_mask_is_the_same_as_leaving_the_classes_out():
    mu, var, labels = problem(8, 6, 2.0)
    labels = labels % 4
    mask = torch.tensor([True] * 4 + [False] * 2).expand(8, 6)
    few = bounds.jensen(mu[:, :4], var[:, :4], labels)
    torch.testing.assert_close(bounds.jensen(mu, var, labels, mask), few)
    noise = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    few = bounds.monte_carlo(mu[:, :4], var[:, :4], labels, noise[..., :4])
    torch.testing.assert_close(bounds.monte_carlo(mu, var, labels, noise, mask), few)


def test_gradients_with_and_without_a_mask():
    mu, var, labels = problem(3, 4, 2.0)
    labels = labels % 3
    mu.requires_grad_()
    var.requires_grad_()
    mask = torch.tensor([True, True, True, False]).expand(3, 4)
    noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for m in (None, mask):
        assert torch.autograd.gradcheck(lambda a, v, m=m: bounds.jensen(a, v, labels, m), (mu, var))
        assert torch.autograd.gradcheck(
            lambda a, v, m=m: bounds.monte_carlo(a, v, labels, noise, m), (mu, var)
        )


def test_monte_carlo_has_a_finite_gradient_at_zero_variance():
    mu, var, labels = problem(3, 4, 0.0)
    var = torch.zeros_like(var).requires_grad_()
    noise = torch.ones(2, 1, 4, dtype=torch.float64)
    bounds.monte_carlo(mu, var, labels, noise).sum().backward()
    assert torch.isfinite(var.grad).all()
