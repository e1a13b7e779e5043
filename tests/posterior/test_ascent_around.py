"""Recursive updates: against brute force, against all rows at once, in any order."""

from __future__ import annotations

import math

import pytest
import torch

from bayestune.posterior import (
    ascend,
    bounds,
    dense,
    diagonal,
    eigen,
    kronecker,
    laplace,
    low_rank,
    mode,
    mode_around,
    ordinal,
    subspace,
)
from bayestune.posterior.ascent import ascend_around

WIDE = torch.float64
N, K, D = 60, 3, 4
VARIANCE = torch.tensor(2.0, dtype=WIDE)
SIGMA = math.sqrt(2.0)


def problem(count: int = N, seed: int = 0, classes: int = K, width: int = D):
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(count, width, generator=g, dtype=WIDE)
    truth = 1.5 * torch.randn(
        classes, width, generator=torch.Generator().manual_seed(7), dtype=WIDE
    )
    labels = torch.multinomial((phi @ truth.T).softmax(-1), 1, generator=g).squeeze(1)
    return phi, labels


def isotropic():
    """The prior as a member of each family."""
    full = torch.full((K, D), SIGMA, dtype=WIDE)
    eye = torch.eye(D, dtype=WIDE)
    none = torch.zeros(K, 0, 0, dtype=WIDE), torch.zeros(D, 0, dtype=WIDE)
    return {
        "diagonal": (diagonal, full),
        "eigen": (eigen, eigen.Spread(full, eye)),
        "dense": (dense, SIGMA * eye.repeat(K, 1, 1)),
        "subspace": (subspace, subspace.Spread(*none, full[0, 0])),
        "kronecker": (kronecker, kronecker.Spread(full[:, 0], eye)),
        "low_rank": (low_rank, low_rank.Spread(full, 0.1 * torch.ones(K, D, 2, dtype=WIDE))),
    }


FORMS = {"diagonal": laplace.Diagonal, "dense": laplace.Block, "subspace": laplace.Span}


@pytest.mark.parametrize("bound", ["jensen", "tilted", "exact"])
@pytest.mark.parametrize("name", list(FORMS))
def test_around_the_prior_it_is_the_ascent_from_it(name, bound):
    count = 3 if name == "subspace" else N
    phi, labels = problem(count)
    zero, b = torch.zeros(K, D, dtype=WIDE), getattr(bounds, bound)
    options = {"kappa": 0.3, "tolerance": 1e-10, "rounds": 100}
    one = ascend(phi, labels, zero, FORMS[name], zero, VARIANCE, b, **options)
    family, spread = isotropic()[name]
    other = ascend_around(phi, labels, zero, family, spread, b, **options)
    assert other.bounds[-1] == pytest.approx(one.bounds[-1], abs=1e-6)
    test_phi = problem(9, seed=1)[0]
    var = one.form.variance(test_phi, 1 / float(VARIANCE))
    mu, found = family.logit_moments(test_phi, other.mean, other.spread)
    torch.testing.assert_close(mu, test_phi @ one.mean.T, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(found, var, atol=1e-4, rtol=2e-3)


@pytest.mark.parametrize("name", list(isotropic()))
def test_the_bound_rises_to_where_its_gradient_vanishes(name):
    phi, labels = problem()
    family, prior = isotropic()[name]
    zero = torch.zeros(K, D, dtype=WIDE)
    first = ascend_around(phi[:30], labels[:30], zero, family, prior, bounds.jensen)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=WIDE) + 0.5
    found = ascend_around(
        phi[30:],
        labels[30:],
        first.mean,
        family,
        first.spread,
        bounds.jensen,
        kappa=0.5,
        weights=weights,
        rounds=4 if name == "low_rank" else 100,
        tolerance=1e-12,
    )
    assert (torch.tensor(found.bounds).diff() >= -1e-7).all()
    assert found.bounds[-1] > found.bounds[0]

    def full(spread):
        u = torch.eye(K * D, dtype=WIDE).unflatten(1, (K, D))
        L = family.unwhiten(spread, u).flatten(1).T
        return L @ L.T

    # The bound itself, with matrices written out; moved along a scale and along the mean.
    P, old = full(first.spread).inverse(), torch.logdet(full(first.spread))
    S = full(found.spread)
    mean, factor = found.mean.clone().requires_grad_(), torch.ones((), dtype=WIDE).requires_grad_()
    var = family.logit_moments(phi[30:], found.mean, found.spread)[1] * factor
    off = (mean - first.mean).flatten()
    kl = 0.5 * ((P @ S).trace() * factor + off @ P @ off - K * D * (1 + factor.log()))
    kl = kl + 0.5 * (old - torch.logdet(S))
    value = weights @ bounds.jensen(phi[30:] @ mean.T, var, labels[30:]) - 0.5 * kl
    assert value.item() == pytest.approx(found.bounds[-1], abs=1e-4)
    for slope in torch.autograd.grad(value, (mean, factor)):
        assert slope.abs().max() < (0.02 if name == "low_rank" else 2e-3)


def grid(phi, labels, prior_precision: float = 1 / float(VARIANCE)):
    """Weights (G, 2) of the log-odds w φ and their posterior masses by brute force."""
    side = torch.linspace(-7, 7, 281, dtype=WIDE)
    w = torch.cartesian_prod(side, side)
    log_p = torch.nn.functional.logsigmoid((2 * labels - 1) * (w @ phi.T)).sum(1)
    return w, (log_p - 0.5 * prior_precision * w.square().sum(1)).softmax(0)


def test_against_brute_force_over_two_weights():
    """Two classes, the rows of one of them held at zero: an ordinal score with a cut at zero."""
    phi, labels = problem(40, classes=2, width=2)
    w, mass = grid(phi, labels)
    truth = mass @ w
    spread_truth = torch.einsum("g,gi,gj->ij", mass, w - truth, w - truth)
    cut = torch.zeros(1, dtype=WIDE)

    def expected(mu, var, y, mask):
        return ordinal.expected_log_likelihood(mu.squeeze(1), var.squeeze(1), y, cut)

    def fit(parts):
        mean, factor = torch.zeros(1, 2, dtype=WIDE), SIGMA * torch.eye(2, dtype=WIDE)[None]
        for part in parts:
            found = ascend_around(
                phi[part], labels[part], mean, dense, factor, expected, tolerance=1e-9
            )
            mean, factor = found.mean, found.spread
        return mean[0], (factor @ factor.mT)[0]

    test_phi = problem(200, seed=3, classes=2, width=2)[0]

    def predictive(m, S):
        mu, var = test_phi @ m, torch.einsum("ni,ij,nj->n", test_phi, S, test_phi)
        return ordinal.expected_probs(mu, var, cut)[0][:, 1]

    exact = mass @ (w @ test_phi.T).sigmoid()
    everything = list(range(40))
    batch = fit([everything])
    worst = {}
    for name, parts in {
        "batch": [everything],
        "two halves": [everything[:20], everything[20:]],
        "other order": [everything[20:], everything[:20]],
        "one by one": [[n] for n in everything],
    }.items():
        m, S = fit(parts)
        worst[name] = float((predictive(m, S) - exact).abs().max())
        assert (m - truth).norm() < 0.12 * truth.norm(), name
        # Rows that come one by one are weighed while little is known, and the covariance is small.
        allowed = 0.5 if name == "one by one" else 0.3
        assert (S - spread_truth).norm() < allowed * spread_truth.norm(), name
        assert (predictive(m, S) - predictive(*batch)).abs().max() < 0.02, name
    assert max(worst.values()) < 0.02, worst
    # What it was before the second half is far from it: the test can fail.
    assert (predictive(*fit([everything[:20]])) - exact).abs().max() > 0.05


def test_a_mode_around_a_posterior_is_the_mode_of_a_quadratic_plus_the_rows():
    phi, labels = problem(12)
    factor = 0.5 * torch.randn(K, D, D, generator=torch.Generator().manual_seed(2), dtype=WIDE)
    mean = torch.randn(K, D, generator=torch.Generator().manual_seed(3), dtype=WIDE)

    def likelihood(logits):
        return logits.log_softmax(1).gather(1, labels[:, None]).sum()

    u = mode_around(
        phi,
        torch.zeros_like(mean),
        mean,
        lambda u: dense.unwhiten(factor, u),
        likelihood,
        tolerance=1e-9,
    )
    W = (mean + dense.unwhiten(factor, u)).requires_grad_()
    off = W - mean
    P = (factor @ factor.mT).inverse()
    value = likelihood(phi @ W.T) - 0.5 * torch.einsum("ki,kij,kj->", off, P, off)
    assert torch.autograd.grad(value, W)[0].abs().max() < 1e-6
    # Of an isotropic prior it is `mode`.
    iso = mode(phi, mean, mean, 0.5, likelihood, tolerance=1e-9)
    u = mode_around(
        phi, torch.zeros_like(mean), mean, lambda u: SIGMA * u, likelihood, tolerance=1e-9
    )
    torch.testing.assert_close(mean + SIGMA * u, iso, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kappa", [1.0, 0.2])
def test_a_new_row_counts_as_much_as_an_old_one(kappa):
    """The covariance of a tempered posterior: S⁻¹ = I/σ₀² + (1/κ) Σ c φφᵀ over old and new."""
    phi, labels = problem()
    zero = torch.zeros(K, D, dtype=WIDE)
    family, prior = isotropic()["dense"]
    options = {"kappa": kappa, "tolerance": 1e-12, "rounds": 300}
    old = ascend_around(phi[:50], labels[:50], zero, family, prior, bounds.jensen, **options)
    new = ascend_around(
        phi[50:], labels[50:], old.mean, family, old.spread, bounds.jensen, **options
    )
    precision = [(f @ f.mT).inverse() for f in (old.spread, new.spread)]
    mu, var = dense.logit_moments(phi[50:], new.mean, new.spread)
    c = (mu + 0.5 * var).softmax(1) / kappa
    gained = torch.einsum("nk,ni,nj->kij", c, phi[50:], phi[50:])
    torch.testing.assert_close(precision[1] - precision[0], gained, atol=1e-3, rtol=1e-3)
