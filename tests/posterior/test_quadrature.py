from __future__ import annotations

import math

import pytest
import torch

from bayestune.posterior.quadrature import expected_sigmoid, expected_softmax


def problem(B: int, K: int, variance: float, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(B, K, generator=g, dtype=torch.float64)
    return mu, variance * 2 * torch.rand(B, K, generator=g, dtype=torch.float64)


def brute_sigmoid(m: float, v: float) -> tuple[float, float]:
    """E σ(d) and E H(σ(d)) as a Riemann sum over d with 200,001 nodes."""
    s = math.sqrt(v)
    d = torch.linspace(m - 12 * s, m + 12 * s, 200_001, dtype=torch.float64)
    weight = (-0.5 * ((d - m) / s) ** 2).exp()
    weight = weight / weight.sum()
    p, q = d.sigmoid(), (-d).sigmoid()
    entropy = torch.special.entr(p) + torch.special.entr(q)
    return float(weight @ p), float(weight @ entropy)


@pytest.mark.parametrize("v", [1e-4, 0.1, 0.359, 0.361, 1.0, 6.0, 30.0, 1e4])
@pytest.mark.parametrize("m", [0.0, 1.3, -7.0, 40.0])
def test_sigmoid_against_brute_force(m, v):
    one = torch.ones(1, dtype=torch.float64)
    p, entropy = expected_sigmoid(m * one, v * one)
    expected_p, expected_entropy = brute_sigmoid(m, v)
    assert abs(float(p) - expected_p) < 1e-6
    assert abs(float(entropy) - expected_entropy) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v", [0.1, 1.0, 4.0])
def test_a_hopeless_class_keeps_its_order_of_magnitude(v, dtype):
    m = -30.0  # far in the tail E σ(d) = exp(m + v/2) up to exp(2m)
    p, _ = expected_sigmoid(torch.tensor([m], dtype=dtype), torch.tensor([v], dtype=dtype))
    assert abs(float(p.log()) - (m + v / 2)) < 1e-2
    mu = torch.tensor([[m, 0.0, -math.inf]], dtype=dtype).clamp_min(-1e4)
    q, _ = expected_softmax(mu, torch.tensor([[v, 0.0, 0.0]], dtype=dtype))
    assert abs(float(q[0, 0].log()) - (m + v / 2)) < 1e-2


@pytest.mark.parametrize("variance", [0.0, 0.2, 0.5, 2.0, 12.0, 100.0, 1e4])
def test_two_racing_classes_are_one_difference(variance):
    mu, var = problem(20, 2, variance)
    p, entropy = expected_softmax(mu, var)
    q, expected = expected_sigmoid(mu[:, 1] - mu[:, 0], var.sum(1))
    assert (p[:, 1] - q).abs().max() < 1e-6
    assert (entropy - expected).abs().max() < 2e-6


@pytest.mark.parametrize("variance", [0.5, 2.0, 12.0, 100.0])
def test_five_classes_against_a_million_draws(variance):
    mu, var = problem(1, 5, variance)
    p, entropy = expected_softmax(mu, var)
    g = torch.Generator().manual_seed(3)
    log_p = (mu + var.sqrt() * torch.randn(10**6, 5, generator=g, dtype=mu.dtype)).log_softmax(-1)
    draws = log_p.exp()
    entropies = -(draws * log_p).sum(-1)
    assert ((p[0] - draws.mean(0)).abs() < 4 * draws.std(0) / 1e3).all()
    assert (entropy[0] - entropies.mean()).abs() < 4 * entropies.std() / 1e3


def test_many_classes_against_draws():
    mu, var = problem(1, 150, 6.0)
    p, entropy = expected_softmax(mu, var)
    g = torch.Generator().manual_seed(3)
    log_p = (mu + var.sqrt() * torch.randn(40_000, 150, generator=g, dtype=mu.dtype)).log_softmax(
        -1
    )
    draws = log_p.exp()
    entropies = -(draws * log_p).sum(-1)
    assert ((p[0] - draws.mean(0)).abs() < 4.5 * draws.std(0) / 200).all()  # 150 at once
    assert (entropy[0] - entropies.mean()).abs() < 4 * entropies.std() / 200


def test_float32_is_enough():
    for K, variance in ((5, 2.0), (77, 12.0), (5, 1e4)):
        mu, var = problem(6, K, variance)
        p, entropy = expected_softmax(mu, var)
        p32, entropy32 = expected_softmax(mu.float(), var.float())
        assert p32.dtype == torch.float32
        assert (p32 - p).abs().max() < 2e-6
        assert (entropy32 - entropy).abs().max() < 2e-5


def test_a_row_does_not_depend_on_its_batch():
    mu, var = problem(9, 6, 1.0)
    var = var * torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    p, entropy = expected_softmax(mu, var)
    for b in range(9):
        one, one_entropy = expected_softmax(mu[b : b + 1], var[b : b + 1])
        torch.testing.assert_close(one[0], p[b], rtol=0, atol=1e-14)
        torch.testing.assert_close(one_entropy[0], entropy[b], rtol=0, atol=1e-13)


def test_gradients():
    mu, var = problem(2, 3, 1.0)
    mu.requires_grad_()
    var.requires_grad_()
    for function, inputs in (
        (expected_softmax, (mu, var)),
        (lambda m, v: expected_sigmoid(m[:, 0], v[:, 0]), (mu, var)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
