"""Credible intervals of probabilities against their laws in closed form, and plain Monte Carlo."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from bayestune.errors import ConfigError
from bayestune.posterior import intervals

LEVEL = 0.9


def test_two_classes_have_the_logit_normal_quantiles() -> None:
    """σ is monotone: the quantiles of σ(d) are those of d = z₁ − z₀ ~ N(μ, s²) under it."""
    mu = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    A = torch.tensor([[1.0, 0.0], [0.7, 0.6]], dtype=torch.float64)
    cov = torch.stack([A @ A.T, torch.eye(2, dtype=torch.float64) * 3, A @ A.T * 0.01])
    found = intervals.from_moments(mu, cov, LEVEL, samples=2**15)
    d = mu[:, 1] - mu[:, 0]
    s = (cov[:, 0, 0] + cov[:, 1, 1] - 2 * cov[:, 0, 1]).sqrt()
    for end, q in zip(found, (0.05, 0.95), strict=True):
        exact = torch.sigmoid(d + s * Normal(0.0, 1.0).icdf(torch.tensor(q, dtype=torch.float64)))
        torch.testing.assert_close(end[:, 1], exact, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[0, :, 0], 1 - found[1, :, 1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("correlated", [False, True])
def test_many_classes_agree_with_independent_draws(correlated: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    mu = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    A = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    cov = A @ A.mT if correlated else torch.diag_embed(A.square().sum(-1))
    var = cov if correlated else cov.diagonal(dim1=-2, dim2=-1)
    found = intervals.from_moments(mu, var, LEVEL, samples=2**13)
    eps = torch.randn(200_000, 3, 5, generator=generator, dtype=torch.float64)
    L = torch.linalg.cholesky(cov)
    p = (mu + torch.einsum("bij,sbj->sbi", L, eps)).softmax(-1)  # (S, B, K)
    below = (p < found[0]).double().mean(0), (p > found[1]).double().mean(0)
    for mass in below:  # in probability mass, whatever the density there
        torch.testing.assert_close(mass, torch.full_like(mass, 0.05), atol=6e-3, rtol=0)


def test_absent_classes_have_none_and_blocks_do_not_show(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    mu, var = torch.randn(7, 3, generator=generator), torch.rand(7, 3, generator=generator)
    mask = torch.tensor([[True, True, False]] * 3 + [[True] * 3] * 4)
    for moments in (var, torch.diag_embed(var)):
        whole = intervals.from_moments(mu, moments, LEVEL, mask)
        assert (whole[:, :3, 2] == 0).all() and (whole[:, 3:] > 0).all()
        pair = intervals.from_moments(mu[:3, :2], var[:3, :2], LEVEL)
        torch.testing.assert_close(whole[:, :3, :2], pair, atol=0.02, rtol=0)
        with monkeypatch.context() as patch:
            patch.setattr(intervals, "_NUMBERS", 2 * 3 * intervals.SAMPLES)
            split = intervals.from_moments(mu, moments, LEVEL, mask)
        torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)


def test_few_draws_are_interpolated_as_numpy_does() -> None:
    import numpy as np

    logits = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    found = intervals.from_samples(logits, LEVEL)
    expected = np.quantile(logits.softmax(-1).numpy(), [0.05, 0.95], axis=0)
    torch.testing.assert_close(found, torch.from_numpy(expected))
    mask = torch.tensor([[True, False, True]] * 4)
    assert (intervals.from_samples(logits, LEVEL, mask)[:, :, 1] == 0).all()


@pytest.mark.parametrize("level", [0.0, 1.0, -1, float("nan")])
def test_a_level_outside_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="level"):
        intervals.quantiles(torch.rand(4, 2), level)
