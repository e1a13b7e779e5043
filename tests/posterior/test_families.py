"""What every covariance family must do, whatever the shape of its spread."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import distributions
from torch.utils._python_dispatch import TorchDispatchMode

from bayestune.posterior import dense, diagonal

K, D = 3, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(family, seed: int = 0) -> torch.Tensor:
    g = generator(seed)
    if family is diagonal:
        return torch.rand(K, D, generator=g, dtype=torch.float64) + 0.1
    # Any square factor, not only a triangular one.
    return torch.randn(K, D, D, generator=g, dtype=torch.float64) / 2 + torch.eye(D).double()


def covariance(family, s: torch.Tensor) -> torch.Tensor:
    return torch.diag_embed(s**2) if family is diagonal else s @ s.mT


def mean(seed: int = 1) -> torch.Tensor:
    return torch.randn(K, D, generator=generator(seed), dtype=torch.float64)


families = pytest.mark.parametrize("family", [diagonal, dense], ids=["diagonal", "dense"])


def test_families_offer_the_same_functions_in_the_same_order():
    names = [
        [n for n, f in vars(m).items() if inspect.isfunction(f) and f.__module__ == m.__name__]
        for m in (diagonal, dense)
    ]
    assert names[0] == ["logit_moments", "kl", "prior_variance", "sample"]
    assert names[1][:4] == names[0]


@families
def test_logit_moments_are_those_of_the_explicit_gaussian(family):
    s, m = spread(family), mean()
    phi = torch.randn(7, D, generator=generator(2), dtype=torch.float64)
    mu, var = family.logit_moments(phi, m, s)
    S = covariance(family, s)
    for b in range(7):
        for k in range(K):
            torch.testing.assert_close(mu[b, k], m[k] @ phi[b])
            torch.testing.assert_close(var[b, k], phi[b] @ S[k] @ phi[b])


@families
def test_logit_moments_take_leading_dimensions(family):
    s, m = spread(family), mean()
    phi = torch.randn(2, 5, D, generator=generator(2), dtype=torch.float64)
    mu, var = family.logit_moments(phi, m, s)
    flat_mu, flat_var = family.logit_moments(phi.reshape(10, D), m, s)
    torch.testing.assert_close(mu.reshape(10, K), flat_mu)
    torch.testing.assert_close(var.reshape(10, K), flat_var)


@families
def test_samples_have_the_moments_that_logit_moments_state(family):
    s, m = spread(family), mean()
    phi = torch.randn(3, D, generator=generator(2), dtype=torch.float64)
    S = 40_000
    W = family.sample(m, s, S, generator(3))
    assert W.shape == (S, K, D)
    z = torch.einsum("skd,bd->sbk", W, phi)
    mu, var = family.logit_moments(phi, m, s)
    assert ((z.mean(0) - mu).abs() < 4 * (var / S).sqrt()).all()
    assert ((z.var(0) / var - 1).abs() < 4 * (2 / S) ** 0.5).all()
    torch.testing.assert_close(
        family.sample(m, s, 5, generator(3)), family.sample(m, s, 5, generator(3))
    )


@families
@pytest.mark.parametrize("shape", [(), (K, 1), (K, D)])
def test_kl_equals_torch_distributions(family, shape):
    s, m, m0 = spread(family), mean(), mean(5)
    variance = torch.rand(shape, generator=generator(4), dtype=torch.float64) + 0.3
    q = distributions.MultivariateNormal(m, covariance(family, s))
    p = distributions.Independent(distributions.Normal(m0, variance.sqrt().expand(K, D)), 1)
    p = distributions.MultivariateNormal(m0, torch.diag_embed(p.variance))
    expected = distributions.kl_divergence(q, p).sum()
    torch.testing.assert_close(family.kl(m, s, m0, variance), expected)


def test_diagonal_kl_equals_independent_normals():
    s, m, m0 = spread(diagonal), mean(), mean(5)
    q = distributions.Independent(distributions.Normal(m, s), 2)
    p = distributions.Independent(distributions.Normal(m0, torch.full_like(m0, 0.7)), 2)
    actual = diagonal.kl(m, s, m0, torch.tensor(0.49, dtype=torch.float64))
    torch.testing.assert_close(actual, distributions.kl_divergence(q, p))


@families
def test_prior_variance_minimises_the_kl(family):
    s, m, m0 = spread(family), mean(), mean(5)
    best = family.prior_variance(m, s, m0).requires_grad_()
    kl = family.kl(m, s, m0, best)
    (slope,) = torch.autograd.grad(kl, best)
    assert abs(slope) < 1e-12
    for factor in (0.9, 1.1):
        assert family.kl(m, s, m0, best.detach() * factor) > kl


@families
def test_gradients(family):
    s, m = spread(family).requires_grad_(), mean().requires_grad_()
    phi = torch.randn(2, D, generator=generator(2), dtype=torch.float64, requires_grad=True)
    variance = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(family.logit_moments, (phi, m, s))
    assert torch.autograd.gradcheck(lambda a, b, v: family.kl(a, b, mean(5), v), (m, s, variance))
    assert torch.autograd.gradcheck(lambda a, b: family.prior_variance(a, b, mean(5)), (m, s))


def test_dense_with_a_diagonal_factor_is_diagonal():
    s, m, m0 = spread(diagonal), mean(), mean(5)
    phi = torch.randn(4, D, generator=generator(2), dtype=torch.float64)
    variance = torch.tensor(0.6, dtype=torch.float64)
    L = torch.diag_embed(s)
    torch.testing.assert_close(dense.logit_moments(phi, m, L), diagonal.logit_moments(phi, m, s))
    torch.testing.assert_close(dense.kl(m, L, m0, variance), diagonal.kl(m, s, m0, variance))
    torch.testing.assert_close(dense.marginal_scale(L), s)


def test_logit_moments_never_hold_a_tensor_over_batch_classes_and_features():
    phi, s = torch.randn(64, 32), torch.rand(50, 32)
    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Record():
        diagonal.logit_moments(phi, s, s)
    assert sizes
    assert max(sizes) <= 64 * 50
