"""What updates exactly: A and then B is A and B at once, to rounding, in any order."""

from __future__ import annotations

import torch

from bayestune.posterior import classes, curvature, eigen
from bayestune.posterior.conjugate import LinearRegression, updated_mean

WIDE = torch.float64
D, SIGMA, TAU = 6, 0.4, 2.0


def draw(*shape: int, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def regression(parts):
    """Mean and covariance by updates of the prior."""
    mean = torch.zeros(D, dtype=WIDE)
    spread = eigen.Spread(torch.full((1, D), TAU**-0.5, dtype=WIDE), torch.eye(D, dtype=WIDE))
    for phi, y, r in parts:
        root = eigen.unwhiten(spread, torch.eye(D, dtype=WIDE)[:, None])[:, 0].T
        mean = updated_mean(phi, y, r / SIGMA**2, mean, root)
        spread = eigen.absorb(spread, phi, r[:, None] / SIGMA**2)
    return mean, (spread.features * spread.scale.square()) @ spread.features.T


def test_a_regression_in_steps_is_the_regression():
    phi, y, r = draw(20, D), draw(20, seed=1), draw(20, seed=2).exp()
    once = LinearRegression.of(phi, y, r)
    mean = once.mean(SIGMA, TAU)
    S = (once.basis * once.scale(SIGMA, TAU).square()) @ once.basis.T
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    for index, size in ((torch.arange(20), 20), (torch.arange(20), 3), (order, 8), (order, 1)):
        parts = [(phi[i], y[i], r[i]) for i in index.split(size)]
        found, covariance = regression(parts)
        torch.testing.assert_close(found, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(covariance, S, rtol=1e-10, atol=1e-12)
        less, before = regression(parts[:-1])
        # A variance only shrinks, in every direction.
        assert torch.linalg.eigvalsh(before - covariance).min() > -1e-12
        assert not torch.allclose(less, mean, atol=1e-4)


def test_a_fit_of_gaussian_classes_says_what_it_was_made_of():
    x, labels = draw(50, 3, seed=4) + 1, torch.arange(50) % 4
    weights = draw(50, seed=5).exp()
    for omega in (None, weights):
        known = classes.Statistics.of(x, labels, 5, omega)
        fitted = classes.fit(known, torch.tensor(0.7, dtype=WIDE), tolerance=1e-14)
        for found, expected in zip(classes.recover(fitted), known, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    parts = [
        classes.Statistics.of(p, y, 5) for p, y in zip(x.split(9), labels.split(9), strict=True)
    ]
    total = parts[3] + parts[0] + parts[5] + parts[1] + parts[4] + parts[2]
    for found, expected in zip(total, classes.Statistics.of(x, labels, 5), strict=True):
        torch.testing.assert_close(found, expected)


def test_curvature_along_directions_is_that_of_the_whole_matrix():
    p = draw(7, 4, seed=6).softmax(1)
    C = torch.linalg.qr(draw(4, 4, seed=7)).Q
    matrix = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("ki,nkl,li->ni", C, matrix, C)
    torch.testing.assert_close(curvature.along(p, C), expected)
    omega = draw(7, seed=8).exp()
    torch.testing.assert_close(curvature.along(p, C, omega), omega[:, None] * expected)
