"""What every covariance family must do, whatever the shape of its spread."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, distributions
from torch.utils._python_dispatch import TorchDispatchMode

from bayestune.posterior import dense, diagonal, eigen, joint, kronecker, low_rank, subspace

K, D = 3, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def independent(seed: int) -> kronecker.Spread:
    g = generator(seed)
    rows = torch.rand(K, generator=g, dtype=torch.float64) + 0.5
    return kronecker.Spread(rows, torch.randn(D, D, generator=g).double() / 2 + torch.eye(D))


def coupled(seed: int) -> kronecker.Spread:
    rows, factor = independent(seed)
    noise = torch.randn(K, K, generator=generator(seed + 9), dtype=torch.float64)
    return kronecker.Spread(rows.diag() + noise / 3, factor)


def low(seed: int) -> low_rank.Spread:
    g = generator(seed)
    scale = torch.rand(K, D, generator=g, dtype=torch.float64) + 0.1
    return low_rank.Spread(scale, torch.randn(K, D, 2, generator=g, dtype=torch.float64) / 2)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64))[
        0
    ].contiguous()


def in_a_basis(seed: int) -> eigen.Spread:
    return eigen.Spread(narrow(seed), orthogonal(D, seed))


def in_two_bases(seed: int) -> eigen.Spread:
    return eigen.Spread(narrow(seed), orthogonal(D, seed), orthogonal(K, seed + 1))


def rotated(s: eigen.Spread) -> Tensor:
    C = torch.eye(K, dtype=torch.float64) if s.classes is None else s.classes
    basis = torch.kron(C, s.features.contiguous())
    return basis @ s.scale.square().flatten().diag() @ basis.T


def narrow(seed: int) -> Tensor:
    return torch.rand(K, D, generator=generator(seed), dtype=torch.float64) + 0.1


def square(seed: int) -> Tensor:
    # Any square factor, not only a triangular one.
    noise = torch.randn(K, D, D, generator=generator(seed), dtype=torch.float64)
    return noise / 2 + torch.eye(D)


def whole(seed: int) -> Tensor:
    noise = torch.randn(K * D, K * D, generator=generator(seed), dtype=torch.float64)
    return noise / 4 + torch.eye(K * D)


def spanned(seed: int) -> subspace.Spread:
    noise = torch.randn(K, 2, 2, generator=generator(seed), dtype=torch.float64)
    rest = torch.tensor(0.7, dtype=torch.float64)
    return subspace.Spread(noise / 2 + torch.eye(2), orthogonal(D, seed)[:, :2].contiguous(), rest)


def lifted(s: subspace.Spread) -> Tensor:
    beyond = s.rest**2 * (torch.eye(D) - s.basis @ s.basis.T)
    return torch.block_diag(*(s.basis @ L @ L.T @ s.basis.T + beyond for L in s.factor))


#: A family, a spread of it, and the joint covariance (KD, KD) which that spread states.
CASES = {
    "diagonal": (diagonal, narrow, lambda s: torch.block_diag(*torch.diag_embed(s**2))),
    "low_rank": (
        low_rank,
        low,
        lambda s: torch.block_diag(
            *(torch.diag_embed(s.scale**2) + s.factor @ s.factor.mT).unbind()
        ),
    ),
    "kronecker": (
        kronecker,
        independent,
        lambda s: torch.kron(s.classes.square().diag(), s.factor @ s.factor.T),
    ),
    "kronecker, coupled classes": (
        kronecker,
        coupled,
        lambda s: torch.kron(s.classes @ s.classes.T, s.factor @ s.factor.T),
    ),
    "eigen": (eigen, in_a_basis, rotated),
    "eigen, of classes too": (eigen, in_two_bases, rotated),
    "dense": (dense, square, lambda s: torch.block_diag(*(s @ s.mT).unbind())),
    "subspace": (subspace, spanned, lifted),
    "joint": (joint, whole, lambda s: s @ s.T),
}


def mean(seed: int = 1) -> torch.Tensor:
    return torch.randn(K, D, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(params=list(CASES))
def case(request):
    """Return a family, a spread and the joint covariance of vec W."""
    family, make, covariance = CASES[request.param]
    spread = make(0)
    return family, spread, covariance(spread)


def grad(spread, on: bool = True):
    """Return the tensors of a spread as leaves that want a gradient."""
    tensors = (spread,) if isinstance(spread, Tensor) else [t for t in spread if t is not None]
    return tuple(t.clone().requires_grad_(on) for t in tensors)


def like(spread, tensors):
    return tensors[0] if isinstance(spread, Tensor) else type(spread)(*tensors)


def test_families_offer_the_same_functions_in_the_same_order():
    for module in (diagonal, low_rank, kronecker, eigen, dense, subspace, joint):
        names = [
            name
            for name, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__
        ]
        assert names[:4] == ["logit_moments", "kl", "prior_variance", "sample"], module.__name__


def test_logit_moments_are_those_of_the_explicit_gaussian(case):
    family, s, C = case
    m = mean()
    phi = torch.randn(7, D, generator=generator(2), dtype=torch.float64)
    mu, var = family.logit_moments(phi, m, s)
    for b in range(7):
        for k in range(K):
            row = torch.zeros(K, D, dtype=torch.float64)
            row[k] = phi[b]
            torch.testing.assert_close(mu[b, k], m[k] @ phi[b])
            torch.testing.assert_close(var[b, k], row.flatten() @ C @ row.flatten())


def test_logit_moments_take_leading_dimensions(case):
    family, s, _ = case
    phi = torch.randn(2, 5, D, generator=generator(2), dtype=torch.float64)
    mu, var = family.logit_moments(phi, mean(), s)
    flat_mu, flat_var = family.logit_moments(phi.reshape(10, D), mean(), s)
    torch.testing.assert_close(mu.reshape(10, K), flat_mu)
    torch.testing.assert_close(var.reshape(10, K), flat_var)


def test_samples_have_the_covariance_that_the_family_states(case):
    family, s, C = case
    m, S = mean(), 60_000
    W = family.sample(m, s, S, generator(3))
    assert W.shape == (S, K, D)
    error = (W - m).flatten(1)
    assert (error.mean(0).abs() < 4 * (C.diagonal() / S).sqrt()).all()
    # The variance of an empirical covariance is (C_ii C_jj + C_ij²) / S.
    spread_of = (torch.outer(C.diagonal(), C.diagonal()) + C.square()).div(S).sqrt()
    assert ((error.T @ error / S - C).abs() < 5 * spread_of).all()
    torch.testing.assert_close(
        family.sample(m, s, 5, generator(3)), family.sample(m, s, 5, generator(3))
    )


@pytest.mark.parametrize("shape", [(), (K, 1), (K, D)])
def test_kl_equals_torch_distributions(case, shape):
    family, s, C = case
    m, m0 = mean(), mean(5)
    variance = torch.rand(shape, generator=generator(4), dtype=torch.float64) + 0.3
    q = distributions.MultivariateNormal(m.flatten(), C)
    p = distributions.MultivariateNormal(m0.flatten(), variance.expand(K, D).flatten().diag())
    expected = distributions.kl_divergence(q, p)
    torch.testing.assert_close(family.kl(m, s, m0, variance), expected)


def test_prior_variance_minimises_the_kl(case):
    family, s, _ = case
    m, m0 = mean(), mean(5)
    best = family.prior_variance(m, s, m0).requires_grad_()
    kl = family.kl(m, s, m0, best)
    (slope,) = torch.autograd.grad(kl, best)
    assert abs(slope) < 1e-12
    for factor in (0.9, 1.1):
        assert family.kl(m, s, m0, best.detach() * factor) > kl


def test_marginal_scale_is_the_diagonal_of_the_covariance(case):
    family, s, C = case
    if family is not diagonal:
        torch.testing.assert_close(family.marginal_scale(s).flatten().square(), C.diagonal())


def test_gradients(case):
    family, s, _ = case
    m = mean().requires_grad_()
    phi = torch.randn(2, D, generator=generator(2), dtype=torch.float64, requires_grad=True)
    variance = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def with_spread(f):
        return lambda *inputs: f(*inputs[:-count], like(s, inputs[-count:]))

    leaves = grad(s)
    count = len(leaves)
    moments = with_spread(lambda x, a, b: family.logit_moments(x, a, b))
    divergence = with_spread(lambda a, v, b: family.kl(a, b, mean(5), v))
    optimum = with_spread(lambda a, b: family.prior_variance(a, b, mean(5)))
    assert torch.autograd.gradcheck(moments, (phi, m, *leaves))
    assert torch.autograd.gradcheck(divergence, (m, variance, *leaves))
    assert torch.autograd.gradcheck(optimum, (m, *leaves))


def test_every_family_with_a_diagonal_spread_is_diagonal():
    s, m, m0 = narrow(0), mean(), mean(5)
    phi = torch.randn(4, D, generator=generator(2), dtype=torch.float64)
    variance = torch.tensor(0.6, dtype=torch.float64)
    same = {
        dense: torch.diag_embed(s),
        joint: s.flatten().diag(),
        low_rank: low_rank.Spread(s, s.new_zeros(K, D, 3)),
        eigen: eigen.Spread(s, torch.eye(D, dtype=torch.float64)),
    }
    for family, spread in same.items():
        torch.testing.assert_close(
            family.logit_moments(phi, m, spread), diagonal.logit_moments(phi, m, s)
        )
        torch.testing.assert_close(
            family.kl(m, spread, m0, variance), diagonal.kl(m, s, m0, variance)
        )
        torch.testing.assert_close(family.marginal_scale(spread).view_as(s), s)
    rows, columns = s[:, 0], s[0] / s[0, 0]
    product = torch.outer(rows, columns)
    spread = kronecker.Spread(rows, columns.diag())
    torch.testing.assert_close(
        kronecker.logit_moments(phi, m, spread), diagonal.logit_moments(phi, m, product)
    )
    torch.testing.assert_close(
        kronecker.kl(m, spread, m0, variance), diagonal.kl(m, product, m0, variance)
    )


@pytest.mark.parametrize(("family", "make"), [(kronecker, coupled), (eigen, in_two_bases)])
def test_coupled_classes_have_the_logit_covariance_of_their_samples(family, make):
    s, m = make(0), mean()
    phi = torch.randn(3, D, generator=generator(2), dtype=torch.float64)
    S = 60_000
    z = family.sample(m, s, S, generator(3)) @ phi.T - m @ phi.T  # (S, K, B)
    empirical = torch.einsum("skb,sjb->bkj", z, z) / S
    V = family.logit_covariance(phi, s)
    own = V.diagonal(dim1=1, dim2=2)
    error = ((own[:, :, None] * own[:, None] + V.square()) / S).sqrt()
    assert ((empirical - V).abs() < 5 * error).all()
    torch.testing.assert_close(own, family.logit_moments(phi, m, s)[1])
    apart = {kronecker: independent, eigen: in_a_basis}[family](0)
    V = family.logit_covariance(phi, apart)
    assert (V * torch.eye(K) == V).all()
    torch.testing.assert_close(V.diagonal(dim1=1, dim2=2), family.logit_moments(phi, m, apart)[1])


@pytest.mark.parametrize("family", [diagonal, low_rank, kronecker, eigen, dense])
def test_logit_moments_never_hold_a_tensor_over_batch_classes_and_features(family):
    B, many, wide = 64, 50, 32
    phi, m, s = torch.randn(B, wide), torch.rand(many, wide), torch.rand(many, wide)
    spreads = {
        diagonal: s,
        low_rank: low_rank.Spread(s, torch.rand(many, wide, 4)),
        kronecker: kronecker.Spread(s[:, 0], torch.eye(wide)),
        eigen: eigen.Spread(s, torch.eye(wide), torch.eye(many)),
        dense: torch.rand(many, wide, wide),
    }
    limits = {low_rank: B * many * 4}
    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Record():
        family.logit_moments(phi, m, spreads[family])
    assert sizes
    assert max(sizes) <= limits.get(family, B * many)


@pytest.mark.parametrize("elements", [1, 2**22])
def test_the_logit_covariance_of_all_weights_is_that_of_their_matrix(monkeypatch, elements):
    monkeypatch.setattr(joint, "_ELEMENTS", elements)
    phi = torch.randn(7, D, generator=generator(2), dtype=torch.float64)
    L = torch.randn(K * D, K * D, generator=generator(3), dtype=torch.float64)
    S = (L @ L.T).view(K, D, K, D)
    expected = torch.einsum("bd,kdje,be->bkj", phi, S, phi)
    torch.testing.assert_close(joint.logit_covariance(phi, L), expected)
