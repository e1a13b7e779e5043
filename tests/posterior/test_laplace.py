from __future__ import annotations

import math

import pytest
import torch

from bayestune.errors import ConfigError, NumericsError
from bayestune.posterior import dense, diagonal, eigen, laplace

N, K, D = 30, 3, 4


def problem(n: int = N, k: int = K, d: int = D, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, d, generator=g, dtype=torch.float64)
    W = torch.randn(k, d, generator=g, dtype=torch.float64)
    weights = torch.rand(n, generator=g, dtype=torch.float64) + 0.5
    labels = torch.randint(k, (n,), generator=g)
    return phi, W, (phi @ W.T).softmax(-1), weights, labels


@pytest.mark.parametrize("weighted", [False, True])
def test_full_curvature_is_the_hessian_of_the_negative_log_likelihood(weighted):
    phi, W, probs, weights, labels = problem()
    w = weights if weighted else torch.ones(N, dtype=torch.float64)

    def negative_log_likelihood(flat):
        log_p = (phi @ flat.reshape(K, D).T).log_softmax(-1)
        return -(w * log_p[torch.arange(N), labels]).sum()

    hessian = torch.autograd.functional.hessian(negative_log_likelihood, W.flatten())
    full = laplace.full_curvature(phi, probs, weights if weighted else None)
    torch.testing.assert_close(full, hessian)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_blocks_and_diagonal_are_those_of_the_full_curvature(weighted, chunk):
    phi, _, probs, weights, _ = problem()
    w = weights if weighted else None
    full = laplace.full_curvature(phi, probs, w)
    blocks = laplace.block_curvature(phi, probs, w, chunk=chunk)
    for k in range(K):
        part = slice(k * D, (k + 1) * D)
        torch.testing.assert_close(blocks[k], full[part, part])
    torch.testing.assert_close(laplace.diagonal_curvature(phi, probs, w).flatten(), full.diagonal())


def test_a_sample_weight_of_two_is_the_example_twice():
    phi, _, probs, _, _ = problem()
    twice = torch.ones(N, dtype=torch.float64)
    twice[5] = 2
    repeated = torch.cat([phi, phi[5:6]]), torch.cat([probs, probs[5:6]])
    torch.testing.assert_close(
        laplace.block_curvature(phi, probs, twice), laplace.block_curvature(*repeated)
    )


def test_refresh_block_factors_the_inverse_precision():
    phi, W, probs, _, _ = problem()
    blocks = laplace.block_curvature(phi, probs)
    factor = laplace.refresh_block(blocks, 0.7)
    inverse = torch.linalg.inv(blocks + 0.7 * torch.eye(D))
    torch.testing.assert_close(factor @ factor.mT, inverse)
    _, var = dense.logit_moments(phi, W, factor)
    torch.testing.assert_close(var, torch.einsum("ni,kij,nj->nk", phi, inverse, phi))


def test_refresh_block_keeps_the_dtype_and_survives_bad_conditioning():
    phi, _, probs, _, _ = problem()
    blocks = laplace.block_curvature(phi[:, :1] * torch.ones(N, D), probs).float() * 1e6
    factor = laplace.refresh_block(blocks, 1e-3)
    assert factor.dtype == torch.float32
    assert torch.isfinite(factor).all()


def test_refresh_diagonal_inverts_the_diagonal():
    phi, W, probs, _, _ = problem()
    curvature = laplace.diagonal_curvature(phi, probs)
    scale = laplace.refresh_diagonal(curvature, 0.7)
    torch.testing.assert_close(scale**-2, curvature + 0.7)
    _, var = diagonal.logit_moments(phi, W, scale)
    torch.testing.assert_close(var, phi**2 @ (1 / (curvature + 0.7)).T)


def test_without_data_the_posterior_is_the_prior():
    none = torch.zeros(0, D, dtype=torch.float64), torch.zeros(0, K, dtype=torch.float64)
    factor = laplace.refresh_block(laplace.block_curvature(*none), 4.0)
    torch.testing.assert_close(factor, 0.5 * torch.eye(D).double().expand(K, D, D))
    scale = laplace.refresh_diagonal(laplace.diagonal_curvature(*none), 4.0)
    torch.testing.assert_close(scale, torch.full((K, D), 0.5).double())


def test_the_spectrum_serves_every_precision():
    phi, W, probs, _, _ = problem()
    blocks = laplace.block_curvature(phi, probs)
    spectrum = laplace.BlockSpectrum.of(blocks)
    taus = torch.tensor([0.01, 0.7, 50.0], dtype=torch.float64)
    scan = spectrum.variance(phi, taus)
    assert scan.shape == (3, N, K)
    for t, tau in enumerate(taus.tolist()):
        _, var = dense.logit_moments(phi, W, laplace.refresh_block(blocks, tau))
        torch.testing.assert_close(scan[t], var)
        torch.testing.assert_close(spectrum.variance(phi, tau), var)
        _, var = dense.logit_moments(phi, W, spectrum.factor(tau))
        torch.testing.assert_close(scan[t], var)


def test_one_eigenbasis_is_the_blocks_where_all_rows_predict_alike():
    phi, W, probs, weights, _ = problem()
    alike = probs[:1].expand(N, K)
    for w in (None, weights):
        curvature = laplace.EigenCurvature.of(phi, alike, w)
        spectrum = laplace.BlockSpectrum.of(laplace.block_curvature(phi, alike, w))
        for tau in (0.01, 3.0):
            expected = spectrum.variance(phi, tau)
            torch.testing.assert_close(curvature.variance(phi, tau), expected)
            spread = eigen.Spread(curvature.scale(tau), curvature.basis)
            torch.testing.assert_close(eigen.logit_moments(phi, W, spread)[1], expected)


def test_one_eigenbasis_is_nearer_to_the_blocks_than_no_basis():
    phi, W, _, _, _ = problem(n=300, d=8)
    phi = phi @ torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()
    probs = (phi @ W.T / 4).softmax(-1)
    block = laplace.BlockSpectrum.of(laplace.block_curvature(phi, probs)).variance(phi, 0.1)
    one = laplace.EigenCurvature.of(phi, probs).variance(phi, 0.1)
    none = phi**2 @ (1 / (laplace.diagonal_curvature(phi, probs) + 0.1)).T
    error = [float((v / block).log().abs().mean()) for v in (one, none)]
    assert error[0] < error[1] / 3


def test_class_blocks_of_two_classes_double_the_variance_of_the_difference():
    phi, _, probs, _, _ = problem(n=400, k=2)
    blocks = laplace.block_curvature(phi, probs)
    full = laplace.full_curvature(phi, probs)
    assert torch.allclose(blocks[0], blocks[1])
    x = phi[:20]
    difference = torch.cat([-x, x], dim=1)  # of the logits, as a vector against vec W
    for tau, low, high in ((1e-3, 1.999, 2.0), (1e3, 1.0, 1.1)):
        block = laplace.BlockSpectrum.of(blocks).variance(x, tau).sum(1)
        precision = full + tau * torch.eye(2 * D)
        exact = (difference * torch.linalg.solve(precision, difference.T).T).sum(1)
        ratio = block / exact
        assert ((low <= ratio) & (ratio <= high + 1e-9)).all()


def test_evidence_of_a_gaussian_likelihood_is_the_known_answer():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, generator=g, dtype=torch.float64)
    y = torch.randn(N, generator=g, dtype=torch.float64)
    M = torch.randn(1, D, generator=g, dtype=torch.float64)
    taus = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    for tau in taus:
        # log N(y; XM, I + XXᵀ/τ), against the mode, curvature and likelihood of the same model.
        marginal = torch.distributions.MultivariateNormal(
            (X @ M.T).squeeze(1), torch.eye(N).double() + X @ X.T / tau
        )
        mode = torch.linalg.solve(X.T @ X + tau * torch.eye(D), X.T @ y + tau * M[0])[None]
        residual = y - X @ mode[0]
        log_likelihood = -0.5 * residual.square().sum() - 0.5 * N * math.log(2 * math.pi)
        values = torch.linalg.eigvalsh(X.T @ X)
        evidence = laplace.log_evidence(log_likelihood, mode, M, values, tau)
        torch.testing.assert_close(evidence, marginal.log_prob(y))
    scan = laplace.log_evidence(log_likelihood, mode, M, values, taus)
    assert scan.shape == (3,)
    torch.testing.assert_close(scan[2], evidence)


def test_evidence_is_the_formula_with_determinants():
    phi, W, probs, _, _ = problem()
    blocks = laplace.block_curvature(phi, probs)
    tau = 0.3
    log_det = torch.logdet(blocks + tau * torch.eye(D)).sum()
    expected = -12.0 - 0.5 * (log_det - K * D * math.log(tau) + tau * W.square().sum())
    values = laplace.BlockSpectrum.of(blocks).values
    zero = torch.zeros(())
    torch.testing.assert_close(laplace.log_evidence(-12.0, W, zero, values, tau), expected)


def test_bad_precisions_and_curvatures_are_errors():
    blocks = torch.eye(D).repeat(K, 1, 1)
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="positive"):
            laplace.refresh_block(blocks, tau)
        with pytest.raises(ConfigError, match="positive"):
            laplace.refresh_diagonal(blocks[0], tau)
    blocks[1] = -10 * torch.eye(D)
    with pytest.raises(NumericsError, match="class 1"):
        laplace.refresh_block(blocks, 1.0)
