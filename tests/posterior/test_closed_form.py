"""Closed forms against their definitions, written out class by class, and against the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayestune.posterior import Predictive
from bayestune.posterior.closed_form import laplace_bridge, probit


def problem(B: int, K: int, variance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(B, K, generator=g, dtype=torch.float64)
    return mu, variance * 2 * torch.rand(B, K, generator=g, dtype=torch.float64)


def correlated(B: int, K: int, variance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    mu, var = problem(B, K, variance, seed)
    g = torch.Generator().manual_seed(seed + 1)
    A = torch.randn(B, K, K, generator=g, dtype=torch.float64)
    return mu, torch.diag_embed(var) + variance / K * A @ A.mT


def second_order(cov: Tensor, p: Tensor) -> Tensor:
    return 0.5 * ((torch.diag(p) - torch.outer(p, p)) @ cov).trace()


def written_out(mu: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probit form of one row ``(K,)`` from its definition."""
    pi = mu.softmax(0)
    scores = []
    for k in range(len(mu)):
        others = mu.clone()
        others[k] = -torch.inf
        contrast = -others.softmax(0)
        contrast[k] = 1.0
        log_odds = mu[k] - others.logsumexp(0)
        spread = contrast @ cov @ contrast
        scores.append(torch.sigmoid(log_odds / (1 + math.pi / 8 * spread).sqrt()))
    p = torch.stack(scores) / sum(scores)
    H = -(p * p.log()).sum()
    M = (second_order(cov, pi) * second_order(cov, p)).sqrt()
    return p, H - H * M / (H + M)


@pytest.mark.parametrize("K", [2, 3, 7])
@pytest.mark.parametrize("make", [problem, correlated])
def test_probit_is_its_definition(K, make):
    mu, var = make(6, K, 3.0)
    p, aleatoric = probit(mu, var)
    cov = var if var.ndim == 3 else torch.diag_embed(var)
    for b in range(6):
        expected, entropy = written_out(mu[b], cov[b])
        torch.testing.assert_close(p[b], expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(aleatoric[b], entropy, rtol=1e-10, atol=0)


def test_probit_of_two_classes_is_that_of_their_difference():
    mu, cov = correlated(20, 2, 5.0)
    spread = cov[:, 0, 0] + cov[:, 1, 1] - 2 * cov[:, 0, 1]
    expected = torch.sigmoid((mu[:, 0] - mu[:, 1]) / (1 + math.pi / 8 * spread).sqrt())
    p, _ = probit(mu, cov)
    torch.testing.assert_close(p[:, 0], expected)
    exact = Predictive.from_moments(mu, cov, method="exact")
    assert (p - exact.probs).abs().max() < 0.02


@pytest.mark.parametrize("confidence", [15.0, 60.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probit_keeps_what_is_left_beside_a_certain_class(confidence, dtype):
    mu = torch.tensor([[confidence, 0.0, -2.0]], dtype=dtype)
    var = torch.tensor([[100.0, 20.0, 50.0]], dtype=dtype)
    p, _ = probit(mu, var)
    expected, _ = written_out(mu[0].double(), var[0].double().diag())
    torch.testing.assert_close(p[0].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("K", "limit"), [(2, 0.006), (5, 0.06), (20, 0.15)])
def test_probit_is_closer_than_damping_every_logit_by_its_own_variance(K, limit):
    mu, var = problem(60, K, 4.0)
    exact = Predictive.from_moments(mu, var, method="exact").probs
    p, _ = probit(mu, var)
    own = ((mu - mu.mean(1, keepdim=True)) / (1 + math.pi / 8 * var).sqrt()).softmax(1)
    error, other = ((x - exact).abs().sum(1).mean() / 2 for x in (p, own))
    assert error < limit
    assert error < 0.8 * other


def test_a_dirichlet_crosses_the_bridge_unchanged():
    g = torch.Generator().manual_seed(0)
    alpha = torch.rand(5, 6, generator=g, dtype=torch.float64).mul(5).exp() / 5
    # The Laplace approximation of Dirichlet(α) in logits of sum zero is that of N(log α, 1/α).
    p, aleatoric = laplace_bridge(alpha.log() + 3.0, 1 / alpha)
    total = alpha.sum(1, keepdim=True)
    torch.testing.assert_close(p, alpha / total)
    psi = torch.special.digamma
    expected = psi(total + 1).squeeze(1) - (alpha / total * psi(alpha + 1)).sum(1)
    torch.testing.assert_close(aleatoric, expected)


def test_the_entropy_of_a_dirichlet_against_draws():
    alpha = torch.tensor([[0.3, 2.0, 40.0, 900.0]], dtype=torch.float64)
    _, aleatoric = laplace_bridge(alpha.log(), 1 / alpha)
    torch.manual_seed(0)
    draws = torch.distributions.Dirichlet(alpha[0]).sample((200_000,))
    entropies = torch.special.entr(draws).sum(1)
    assert abs(aleatoric[0] - entropies.mean()) < 4 * entropies.std() / 200_000**0.5


@pytest.mark.parametrize("K", [2, 3, 7])
@pytest.mark.parametrize("make", [problem, correlated])
def test_the_bridge_is_its_definition(K, make):
    mu, var = make(4, K, 2.0)
    cov = var if var.ndim == 3 else torch.diag_embed(var)
    P = torch.eye(K, dtype=torch.float64) - 1 / K
    centred, own = mu @ P, (P @ cov @ P).diagonal(dim1=1, dim2=2)
    odds = centred.exp() * (-centred).exp().sum(1, keepdim=True) / K**2
    alpha = (1 - 2 / K + odds) / own
    p, _ = laplace_bridge(mu, var)
    torch.testing.assert_close(p, alpha / alpha.sum(1, keepdim=True))


def test_the_bridge_is_no_better_than_it_is_said_to_be():
    mu, var = problem(60, 20, 0.1)
    exact = Predictive.from_moments(mu, var, method="exact").probs
    p, _ = laplace_bridge(mu, var)
    assert (p - exact).abs().sum(1).mean() / 2 > 0.2
    few, small = problem(60, 2, 0.1)
    exact = Predictive.from_moments(few, small, method="exact").probs
    assert (laplace_bridge(few, small)[0] - exact).abs().max() < 0.03


@pytest.mark.parametrize("method", [probit, laplace_bridge])
def test_a_shift_that_correlates_with_the_classes_changes_nothing(method):
    mu, cov = correlated(5, 4, 2.0)
    g = torch.Generator().manual_seed(7)
    b = torch.randn(5, 4, 1, generator=g, dtype=torch.float64)
    shifted = cov + b + b.mT + 30.0  # Cov(z + s 1) with Cov(z, s) = b and Var s = 30
    for x, y in zip(method(mu, cov), method(mu - 5.0, shifted), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("method", [probit, laplace_bridge])
@pytest.mark.parametrize("make", [problem, correlated])
def test_absent_classes_are_as_if_they_were_not_there(method, make):
    mu, var = make(6, 5, 2.0)
    mu[:, 2] = 40.0
    keep = [0, 1, 3, 4]
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:, 2] = False
    few = var[:, keep] if var.ndim == 2 else var[:, keep][:, :, keep]
    p, aleatoric = method(mu, var, mask)
    expected, entropy = method(mu[:, keep], few)
    assert (p[:, 2] == 0).all()
    torch.testing.assert_close(p[:, keep], expected)
    torch.testing.assert_close(aleatoric, entropy)


@pytest.mark.parametrize("method", [probit, laplace_bridge])
@pytest.mark.parametrize("K", [2, 4])
def test_gradients(method, K):
    mu, cov = correlated(2, K, 1.0)
    _, var = problem(2, K, 1.0)
    for spread in (var, cov):
        inputs = (mu.clone().requires_grad_(), spread.clone().requires_grad_())
        assert torch.autograd.gradcheck(method, inputs)
