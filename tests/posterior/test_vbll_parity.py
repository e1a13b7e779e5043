"""The reference package for Bayesian last layers as an oracle where it is right."""

from __future__ import annotations

import pytest
import torch

from bayestune.posterior import bounds, dense, diagonal

vbll = pytest.importorskip("vbll.layers.classification")

K, D, B = 4, 6, 9


@pytest.mark.parametrize("parameterization", ["diagonal", "dense"])
def test_bound_divergence_and_moments(parameterization):
    torch.manual_seed(0)
    layer = vbll.DiscClassification(D, K, 0.1, parameterization=parameterization).double()
    with torch.no_grad():  # its own start is nearly a point
        layer.W_logdiag.add_(1.5)
        if parameterization == "dense":
            layer.W_offdiag.copy_(0.3 * torch.randn(K, D, D))
    phi = torch.randn(B, D, dtype=torch.float64)
    labels = torch.randint(K, (B,))

    family, spread = diagonal, layer.W_logdiag.exp()  # a standard deviation there, too
    if parameterization == "dense":
        family = dense
        spread = torch.tril(layer.W_offdiag, -1) + torch.diag_embed(spread)
    mu, var = family.logit_moments(phi, layer.W_mean, spread)

    theirs = layer.logit_predictive(phi)
    noise = layer.noise().var
    torch.testing.assert_close(mu, theirs.mean)
    torch.testing.assert_close(var + noise, theirs.covariance_diagonal)
    torch.testing.assert_close(
        bounds.jensen(mu, var + noise, labels), layer.jensen_bound(phi, labels)
    )

    prior_variance = torch.tensor(layer.prior_scale, dtype=torch.float64)
    kl = family.kl(layer.W_mean, spread, torch.zeros(K, D), prior_variance)
    without_constant = vbll.gaussian_kl(layer.W(), layer.prior_scale)
    torch.testing.assert_close(kl, without_constant - K * D / 2)
