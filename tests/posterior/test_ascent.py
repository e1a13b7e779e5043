"""Coordinate ascent against what is known of the optimum."""

from __future__ import annotations

import pytest
import torch

from bayestune.posterior import bounds, dense, diagonal, eigen, laplace
from bayestune.posterior.ascent import ascend

N, K, D = 60, 3, 4
BOUNDS = {name: getattr(bounds, name) for name in ("jensen", "tilted", "exact")}
FORMS = {"Diagonal": diagonal, "Eigen": eigen, "Block": dense}
VARIANCE = torch.tensor(2.0, dtype=torch.float64)


def problem(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(N, D, generator=g, dtype=torch.float64)
    truth = 1.5 * torch.randn(K, D, generator=g, dtype=torch.float64)
    labels = torch.multinomial((phi @ truth.T).softmax(-1), 1, generator=g).squeeze(1)
    return phi, labels, torch.zeros(K, D, dtype=torch.float64)


@pytest.mark.parametrize("kappa", [1.0, 0.2])
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("name", list(BOUNDS))
def test_it_ends_where_the_gradient_of_the_bound_vanishes(name, form, kappa):
    phi, labels, centre = problem()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    found = ascend(
        phi,
        labels,
        centre,
        getattr(laplace, form),
        centre,
        VARIANCE,
        BOUNDS[name],
        kappa=kappa,
        weights=weights,
        rounds=200,
        tolerance=1e-12,
    )
    family = FORMS[form]
    spread = found.form.spread(1 / VARIANCE)
    mean, scale = found.mean.clone(), spread.scale if form == "Eigen" else spread
    mean.requires_grad_()
    scale = scale.clone().requires_grad_()
    q = spread._replace(scale=scale) if form == "Eigen" else scale
    mu, var = family.logit_moments(phi, mean, q)
    value = (weights * BOUNDS[name](mu, var, labels)).sum()
    value = value - kappa * family.kl(mean, q, centre, VARIANCE)
    assert value.item() == pytest.approx(found.bounds[-1])
    for slope in torch.autograd.grad(value, (mean, scale)):
        assert slope.abs().max() < 1e-3
    rises = torch.tensor(found.bounds).diff()
    assert (rises >= -1e-9).all() and found.bounds[-1] > found.bounds[0] + 1


def run(phi, labels, mean, form, bound, **options):
    zero = torch.zeros_like(mean)
    return ascend(phi, labels, mean, form, zero, VARIANCE, bound, tolerance=1e-13, **options)


@pytest.mark.parametrize("name", list(BOUNDS))
def test_the_covariance_starts_at_its_fixed_point_for_small_variances(name):
    phi, labels, centre = problem()
    start = centre + 0.5
    found = run(phi, labels, start, laplace.Diagonal, BOUNDS[name], rounds=0)
    p = (phi @ start.T).softmax(-1)
    own = p if name == "jensen" else p * (1 - p)
    torch.testing.assert_close(found.form.values, own.T @ phi.square(), rtol=1e-3, atol=0)


def test_jensens_fixed_point_is_that_of_the_formula():
    phi, labels, centre = problem()
    found = run(phi, labels, centre, laplace.Block, bounds.jensen)
    S = found.form.spread(1 / VARIANCE)
    S = S @ S.mT
    var = torch.einsum("ni,kij,nj->nk", phi, S, phi)
    inflated = (phi @ found.mean.T + 0.5 * var).softmax(-1)
    expected = torch.eye(D) / VARIANCE + torch.einsum("nk,ni,nj->kij", inflated, phi, phi)
    torch.testing.assert_close(torch.linalg.inv(S), expected, rtol=1e-4, atol=1e-6)


def test_the_tilted_fixed_point_is_the_curvature_at_its_tilt():
    # In one dimension of two classes the best tilt is found by bisection.
    g = torch.Generator().manual_seed(2)
    phi = torch.randn(40, 1, generator=g, dtype=torch.float64)
    labels = (phi[:, 0] + torch.randn(40, generator=g, dtype=torch.float64) > 0).long()
    zero = torch.zeros(2, 1, dtype=torch.float64)
    found = run(phi, labels, zero, laplace.Diagonal, bounds.tilted)
    mu, var = diagonal.logit_moments(phi, found.mean, found.form.spread(1 / VARIANCE))
    a = torch.full_like(mu, 0.5)
    for _ in range(2000):
        a = a + 0.2 * ((mu + (0.5 - a) * var).softmax(-1) - a)
    expected = (a * (1 - a)).T @ phi.square()
    torch.testing.assert_close(found.form.values, expected, rtol=1e-4, atol=0)


def test_a_richer_covariance_reaches_a_higher_bound():
    phi, labels, centre = problem()
    phi = phi @ torch.randn(D, D, generator=torch.Generator().manual_seed(3)).double()
    reached = {
        form: run(phi, labels, centre, getattr(laplace, form), bounds.tilted).bounds[-1]
        for form in FORMS
    }
    assert reached["Block"] > reached["Eigen"] + 0.01
    assert reached["Block"] > reached["Diagonal"] + 0.5


def test_without_rows_it_is_the_prior():
    phi, labels, centre = problem()
    centre = centre + 0.7
    found = ascend(
        phi[:0], labels[:0], 0 * centre, laplace.Diagonal, centre, VARIANCE, bounds.jensen
    )
    torch.testing.assert_close(found.mean, centre, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.form.spread(1 / VARIANCE).square(), VARIANCE.expand(K, D), rtol=1e-6, atol=0
    )


def test_a_mask_leaves_classes_out():
    phi, labels, centre = problem()
    keep = labels < 2
    phi, labels = phi[keep], labels[keep]
    mask = torch.tensor([True, True, False]).expand(len(phi), K)
    found = run(phi, labels, centre, laplace.Eigen, bounds.jensen, mask=mask)
    few = run(phi, labels, centre[:2], laplace.Eigen, bounds.jensen)
    torch.testing.assert_close(found.mean[:2], few.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.form.values[2], torch.zeros(D).double())
