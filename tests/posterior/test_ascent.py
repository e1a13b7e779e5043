"""Coordinate ascent against what is known of the optimum."""

from __future__ import annotations

import pytest
import torch

from bayestune.posterior import bounds, eigen
from bayestune.posterior.ascent import ascend

N, K, D = 60, 3, 4
BOUNDS = {name: getattr(bounds, name) for name in ("jensen", "tilted", "exact")}


def problem(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(N, D, generator=g, dtype=torch.float64)
    truth = 1.5 * torch.randn(K, D, generator=g, dtype=torch.float64)
    labels = torch.multinomial((phi @ truth.T).softmax(-1), 1, generator=g).squeeze(1)
    basis = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))[0]
    start = eigen.Spread(torch.full((K, D), 0.3, dtype=torch.float64), basis)
    return phi, labels, torch.zeros(K, D, dtype=torch.float64), start


VARIANCE = torch.tensor(2.0, dtype=torch.float64)


def lower_bound(phi, labels, mean, spread, prior_mean, bound, kappa, weights=None, mask=None):
    mu, var = eigen.logit_moments(phi, mean, spread)
    rows = bound(mu, var, labels, mask)
    rows = rows if weights is None else weights * rows
    return rows.sum() - kappa * eigen.kl(mean, spread, prior_mean, VARIANCE)


@pytest.mark.parametrize("kappa", [1.0, 0.2])
@pytest.mark.parametrize("name", list(BOUNDS))
def test_it_ends_where_the_gradient_of_the_bound_vanishes(name, kappa):
    phi, labels, prior_mean, start = problem()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    found = ascend(
        phi,
        labels,
        prior_mean,
        start,
        prior_mean,
        VARIANCE,
        BOUNDS[name],
        kappa=kappa,
        weights=weights,
        rounds=200,
        tolerance=1e-12,
    )
    mean = found.mean.clone().requires_grad_()
    log_scale = found.spread.scale.log().requires_grad_()
    spread = found.spread._replace(scale=log_scale.exp())
    value = lower_bound(phi, labels, mean, spread, prior_mean, BOUNDS[name], kappa, weights)
    assert value.item() == pytest.approx(found.bounds[-1])
    for slope in torch.autograd.grad(value, (mean, log_scale)):
        assert slope.abs().max() < 2e-4
    rises = torch.tensor(found.bounds).diff()
    assert (rises >= -1e-9).all() and found.bounds[-1] > found.bounds[0] + 5


def test_jensens_fixed_point_is_that_of_the_formula():
    phi, labels, prior_mean, start = problem()
    found = ascend(
        phi, labels, prior_mean, start, prior_mean, VARIANCE, bounds.jensen, tolerance=1e-12
    )
    mu, var = eigen.logit_moments(phi, found.mean, found.spread)
    inflated = (mu + 0.5 * var).softmax(-1)
    expected = 1 / VARIANCE + inflated.T @ (phi @ start.features).square()
    torch.testing.assert_close(found.spread.scale**-2, expected, rtol=1e-4, atol=0)


def test_the_tilted_fixed_point_is_the_curvature_at_its_tilt():
    # In one dimension of two classes the best tilt is found by bisection.
    g = torch.Generator().manual_seed(2)
    phi = torch.randn(40, 1, generator=g, dtype=torch.float64)
    labels = (phi[:, 0] + torch.randn(40, generator=g, dtype=torch.float64) > 0).long()
    one = torch.ones(1, 1, dtype=torch.float64)
    start = eigen.Spread(torch.full((2, 1), 0.5, dtype=torch.float64), one)
    zero = torch.zeros(2, 1, dtype=torch.float64)
    found = ascend(phi, labels, zero, start, zero, VARIANCE, bounds.tilted, tolerance=1e-13)
    mu, var = eigen.logit_moments(phi, found.mean, found.spread)
    a = torch.full_like(mu, 0.5)
    for _ in range(2000):
        a = a + 0.2 * ((mu + (0.5 - a) * var).softmax(-1) - a)
    expected = 1 / VARIANCE + (a * (1 - a)).T @ phi.square()
    torch.testing.assert_close(found.spread.scale**-2, expected, rtol=1e-4, atol=0)


def test_without_rows_it_is_the_prior():
    phi, labels, prior_mean, start = problem()
    centre = prior_mean + 0.7
    found = ascend(phi[:0], labels[:0], prior_mean, start, centre, VARIANCE, bounds.jensen)
    torch.testing.assert_close(found.mean, centre, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.spread.scale.square(), VARIANCE.expand(K, D))


def test_a_mask_leaves_classes_out():
    phi, labels, prior_mean, start = problem()
    keep = labels < 2
    phi, labels = phi[keep], labels[keep]
    mask = torch.tensor([True, True, False]).expand(len(phi), K)
    found = ascend(phi, labels, prior_mean, start, prior_mean, VARIANCE, bounds.jensen, mask=mask)
    few = ascend(
        phi,
        labels,
        prior_mean[:2],
        start._replace(scale=start.scale[:2]),
        prior_mean[:2],
        VARIANCE,
        bounds.jensen,
    )
    torch.testing.assert_close(found.mean[:2], few.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.spread.scale[2].square(), VARIANCE.expand(D))
