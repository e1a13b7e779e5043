"""Families as priors of more rows: against matrices that are written out, and against autograd."""

from __future__ import annotations

import pytest
import torch

from bayestune.posterior import (
    curvature,
    dense,
    diagonal,
    eigen,
    joint,
    kronecker,
    low_rank,
    subspace,
)

K, D, R, N = 3, 5, 2, 7
WIDE = torch.float64


def draw(*shape: int, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def orthogonal(size: int, columns: int | None = None, seed: int = 3):
    return torch.linalg.qr(draw(size, size, seed=seed)).Q[:, :columns].contiguous()


def spreads():
    scale = (0.3 * draw(K, D, seed=1)).exp()
    rest = torch.tensor(0.7, dtype=WIDE)
    return {
        "diagonal": (diagonal, scale),
        "low_rank": (low_rank, low_rank.Spread(scale, 0.3 * draw(K, D, R, seed=2))),
        "kronecker": (kronecker, kronecker.Spread(scale[:, 0], draw(D, D, seed=2))),
        "eigen": (eigen, eigen.Spread(scale, orthogonal(D))),
        "coupled": (eigen, eigen.Spread(scale, orthogonal(D), orthogonal(K, seed=4))),
        "dense": (dense, draw(K, D, D, seed=2)),
        "subspace": (
            subspace,
            subspace.Spread(draw(K, R, R, seed=2), orthogonal(D, R), rest),
        ),
        "joint": (joint, draw(K * D, K * D, seed=2)),
    }


def covariance(family, spread, size: int = K * D):
    """The covariance of all weights, column by column."""
    u = torch.eye(size, dtype=WIDE).unflatten(1, (K, D))
    L = family.unwhiten(spread, u).flatten(1).T
    return L @ L.T


def blocks(phi, own):
    """Σ_n c_nk φφᵀ of all classes on the diagonal of one matrix."""
    return torch.block_diag(*curvature.block(phi, own))


def rows(count: int = N):
    phi = draw(count, D, seed=5)
    return phi, draw(count, K, seed=6).square()


@pytest.mark.parametrize("name", list(spreads()))
def test_unwhitened_coordinates_have_the_variances_of_the_family(name):
    family, spread = spreads()[name]
    S, phi = covariance(family, spread), rows()[0]
    mean = draw(K, D, seed=8)
    wide = torch.kron(torch.eye(K, dtype=WIDE), phi)  # (K·N, K·D)
    var = (wide @ S @ wide.T).diagonal().view(K, -1).T
    torch.testing.assert_close(family.logit_moments(phi, mean, spread)[1], var)
    torch.testing.assert_close(family.log_determinant(spread), torch.logdet(S))
    several = family.unwhiten(spread, draw(4, 2, K, D, seed=9))
    torch.testing.assert_close(
        several[3, 1], family.unwhiten(spread, draw(4, 2, K, D, seed=9)[3, 1])
    )


@pytest.mark.parametrize("count", [2, N])
@pytest.mark.parametrize("name", ["dense", "subspace"])
def test_blocks_take_in_rows_exactly(name, count):
    family, spread = spreads()[name]
    phi, own = rows(count)
    expected = (covariance(family, spread).inverse() + blocks(phi, own)).inverse()
    found = family.absorb(spread, phi, own)
    torch.testing.assert_close(covariance(family, found), expected)
    if name == "subspace":
        assert found.basis.shape == (D, min(D, R + count))
        torch.testing.assert_close(
            found.basis.T @ found.basis, torch.eye(found.basis.shape[1], dtype=WIDE)
        )


def test_the_whole_curvature_is_taken_in_exactly():
    family, spread = spreads()["joint"]
    phi, own = rows()
    G = curvature.full(phi, own.softmax(1), own[:, 0])
    expected = (covariance(family, spread).inverse() + G).inverse()
    torch.testing.assert_close(covariance(family, family.absorb(spread, G)), expected)


def test_of_one_class_an_eigenbasis_turns_and_nothing_is_lost():
    scale, basis = draw(1, D, seed=1).exp(), orthogonal(D)
    phi, own = rows()
    found = eigen.absorb(eigen.Spread(scale, basis), phi, own[:, :1])
    P = (basis / scale.square()) @ basis.T + phi.T @ (own[:, :1] * phi)
    S = (found.features * found.scale.square()) @ found.features.T
    torch.testing.assert_close(S, P.inverse())


def test_the_summed_precision_of_all_classes_survives_any_number_of_updates():
    family, spread = spreads()["eigen"]
    phi, own = rows()
    once = family.absorb(spread, phi, own)
    twice = family.absorb(family.absorb(spread, phi[:3], own[:3]), phi[3:], own[3:])

    def pooled(s):
        return (s.features / s.scale.square().reciprocal().sum(0).reciprocal()) @ s.features.T

    torch.testing.assert_close(pooled(once), pooled(twice))
    torch.testing.assert_close(once.features.abs(), twice.features.abs())


def test_two_coupled_classes_keep_their_whole_curvature():
    torch.manual_seed(0)
    half = 0.5**0.5
    C = torch.tensor([[half, half], [half, -half]], dtype=WIDE)
    phi, p = rows()[0], draw(N, 2, seed=7).softmax(1)
    first = torch.full((2, D), 0.8, dtype=WIDE)
    spread = eigen.Spread(first, orthogonal(D), C)
    found = eigen.absorb(spread, phi, curvature.along(p, C))
    u = torch.eye(2 * D, dtype=WIDE).unflatten(1, (2, D))
    L = eigen.unwhiten(found, u).flatten(1).T
    expected = torch.eye(2 * D, dtype=WIDE) / 0.64 + curvature.full(phi, p)
    torch.testing.assert_close(L @ L.T, expected.inverse())


def parts(name, spread):
    """What of a spread is free, and how it is put together again."""
    match name:
        case "diagonal":
            return (spread,), lambda s: s
        case "eigen":
            return (spread.scale,), lambda s: spread._replace(scale=s)
        case "coupled":
            return (spread.scale,), lambda s: spread._replace(scale=s)
        case "subspace":
            return (spread.factor, spread.rest), lambda f, r: spread._replace(factor=f, rest=r)
        case "low_rank":
            return tuple(spread), low_rank.Spread
        case "kronecker":
            return tuple(spread), kronecker.Spread
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name", ["diagonal", "low_rank", "kronecker", "eigen", "coupled", "subspace"]
)
def test_nothing_in_the_family_is_nearer_to_the_exact_posterior(name, monkeypatch):
    monkeypatch.setattr(subspace, "_NUMBERS", K * (R + 1) ** 2)  # room for one direction more
    family, spread = spreads()[name]
    phi, own = rows()
    A = blocks(phi, own)
    if name == "coupled":
        turned = torch.kron(spread.classes, torch.eye(D, dtype=WIDE))
        A = turned @ A @ turned.T
    P = covariance(family, spread).inverse() + A
    found = family.absorb(spread, phi, own)
    free, build = parts(name, found)
    free = [t.detach().clone().requires_grad_() for t in free]
    S = covariance(family, build(*free))
    divergence = 0.5 * ((P @ S).trace() - torch.logdet(S))
    for part, slope in zip(free, torch.autograd.grad(divergence, free), strict=True):
        assert (part * slope).abs().max() < 1e-5  # of a relative change
    # at a stationary scale the trace is the number of weights, which ascents rely on
    assert (P @ S).trace().item() == pytest.approx(K * D, abs=1e-4)
    start = 0.5 * (
        (P @ covariance(family, spread)).trace() - torch.logdet(covariance(family, spread))
    )
    assert divergence < start - 1
    if name == "subspace":
        assert found.basis.shape == (D, R + 1)
        assert found.rest < spread.rest


@pytest.mark.parametrize("name", list(spreads()))
def test_variances_only_shrink(name):
    family, spread = spreads()[name]
    phi, own = rows(4)
    more = curvature.full(phi, own.softmax(1)) if name == "joint" else (phi, own)
    found = family.absorb(spread, *(more if isinstance(more, tuple) else (more,)))
    mean = torch.zeros(K, D, dtype=WIDE)
    before, after = (family.logit_moments(phi, mean, s)[1] for s in (spread, found))
    assert (after.sum(1) < before.sum(1)).all()


def test_a_diagonal_that_columns_replace_stays_a_prior():
    spread = low_rank.Spread(draw(K, D, seed=1).exp(), 3 * draw(K, D, R, seed=2))
    for seed in range(2):
        spread = low_rank.absorb(spread, draw(N, D, seed=seed), draw(N, K, seed=6).square())
    share = spread.scale / low_rank.marginal_scale(spread)
    assert share.min() > 1e-6 and torch.isfinite(covariance(low_rank, spread)).all()


def test_a_like_result_gives_its_basis():
    for name in ("eigen", "subspace"):
        family, spread = spreads()[name]
        phi, own = rows(2)
        first = family.absorb(spread, phi, own)
        again = family.absorb(spread, phi, 2 * own, first)
        here = again.features if name == "eigen" else again.basis
        there = first.features if name == "eigen" else first.basis
        assert torch.equal(here, there)


def test_repeated_rows_and_rows_in_the_span_do_not_widen_it():
    family, spread = spreads()["subspace"]
    inside = draw(3, R, seed=1) @ spread.basis.T
    found = family.absorb(spread, inside, rows(3)[1])
    assert found.basis.shape == (D, R)
    one = draw(1, D, seed=2).repeat(3, 1)
    assert family.absorb(spread, one, rows(3)[1]).basis.shape == (D, R + 1)
