"""Curvature and the Laplace posteriors that follow from it, against definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch

from bayestune.errors import ConfigError, NumericsError
from bayestune.posterior import curvature, dense, diagonal, eigen, joint, laplace, subspace
from bayestune.posterior.evidence import log_evidence

N, K, D = 30, 3, 4
FORMS = ("Diagonal", "Eigen", "Block", "Kronecker", "Full")


def problem(n: int = N, k: int = K, d: int = D, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, d, generator=g, dtype=torch.float64)
    W = torch.randn(k, d, generator=g, dtype=torch.float64)
    weights = torch.rand(n, generator=g, dtype=torch.float64) + 0.5
    labels = torch.randint(k, (n,), generator=g)
    return phi, W, (phi @ W.T).softmax(-1), weights, labels


def measured(name: str, phi, probs, weights=None):
    if name in ("Kronecker", "Full"):
        return getattr(laplace, name).of(phi, probs, weights)
    return getattr(laplace, name).of(phi, curvature.bernoulli(probs, weights))


def inverse(G, tau):
    """Covariance (G + τI)⁻¹ as (K, D, K, D)."""
    k = G.shape[0] // D
    return torch.linalg.inv(G + tau * torch.eye(k * D, dtype=G.dtype)).view(k, D, k, D)


# curvature --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_full_curvature_is_the_hessian_of_the_negative_log_likelihood(weighted, chunk):
    phi, W, probs, weights, labels = problem()
    w = weights if weighted else torch.ones(N, dtype=torch.float64)

    def negative_log_likelihood(flat):
        log_p = (phi @ flat.reshape(K, D).T).log_softmax(-1)
        return -(w * log_p[torch.arange(N), labels]).sum()

    hessian = torch.autograd.functional.hessian(negative_log_likelihood, W.flatten())
    full = curvature.full(phi, probs, weights if weighted else None, chunk=chunk)
    torch.testing.assert_close(full, hessian)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_blocks_are_those_of_the_full_curvature(weighted, chunk):
    phi, _, probs, weights, _ = problem()
    w = weights if weighted else None
    full = curvature.full(phi, probs, w)
    blocks = curvature.block(phi, curvature.bernoulli(probs, w), chunk=chunk)
    for k in range(K):
        part = slice(k * D, (k + 1) * D)
        torch.testing.assert_close(blocks[k], full[part, part])


def test_a_sample_weight_of_two_is_the_example_twice():
    phi, _, probs, _, _ = problem()
    twice = torch.ones(N, dtype=torch.float64)
    twice[5] = 2
    repeated = torch.cat([phi, phi[5:6]]), torch.cat([probs, probs[5:6]])
    torch.testing.assert_close(curvature.full(phi, probs, twice), curvature.full(*repeated))
    for mine, copied in zip(
        curvature.kronecker(phi, probs, twice), curvature.kronecker(*repeated), strict=True
    ):
        torch.testing.assert_close(mine, copied)


def test_kronecker_factors_are_the_whole_where_all_rows_predict_alike():
    phi, _, probs, weights, _ = problem()
    alike = probs[:1].expand(N, K)
    B, A = curvature.kronecker(phi, alike, weights)
    torch.testing.assert_close(
        torch.kron(B.contiguous(), A.contiguous()), curvature.full(phi, alike, weights)
    )


# posteriors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tau", [0.01, 0.7, 50.0])
def test_the_full_posterior_inverts_the_precision(tau, weighted):
    phi, W, probs, weights, _ = problem()
    w = weights if weighted else None
    S = inverse(curvature.full(phi, probs, w), tau)
    form = laplace.Full.of(phi, probs, w)
    cov = form.variance(phi, tau)
    torch.testing.assert_close(cov, torch.einsum("ni,kilj,nj->nkl", phi, S, phi))
    mu, var = joint.logit_moments(phi, W, form.spread(tau))
    torch.testing.assert_close(mu, phi @ W.T)
    torch.testing.assert_close(var, cov.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("tau", [0.01, 50.0])
def test_the_block_posterior_inverts_every_block(tau):
    phi, W, probs, _, _ = problem()
    form = measured("Block", phi, probs)
    blocks = curvature.block(phi, curvature.bernoulli(probs))
    S = inverse(torch.block_diag(*blocks), tau)
    expected = torch.einsum("ni,kikj,nj->nk", phi, S, phi)
    torch.testing.assert_close(form.variance(phi, tau), expected)
    torch.testing.assert_close(dense.logit_moments(phi, W, form.spread(tau))[1], expected)


def test_blocks_at_a_precision_of_every_weight():
    phi, W, probs, weights, _ = problem()
    own = curvature.bernoulli(probs, weights)
    tau = torch.rand(K, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1
    form = laplace.Given.of(phi, own, tau)
    inverse = torch.linalg.inv(curvature.block(phi, own) + torch.diag_embed(tau))
    expected = torch.einsum("ni,kij,nj->nk", phi, inverse, phi)
    torch.testing.assert_close(form.variance(phi), expected)
    torch.testing.assert_close(dense.logit_moments(phi, W, form.spread())[1], expected)
    same = laplace.Given.of(phi, own, torch.full((K, D), 0.3).double()).variance(phi)
    torch.testing.assert_close(same, laplace.Block.of(phi, own).variance(phi, 0.3))
    with pytest.raises(NumericsError, match="class 0"):
        laplace.Given.of(phi, own, torch.full((K, D), -1e6).double())


@pytest.mark.parametrize("tau", [0.01, 0.7])
def test_the_diagonal_posterior_inverts_the_diagonal(tau):
    phi, W, probs, _, _ = problem()
    form = measured("Diagonal", phi, probs)
    expected = phi**2 @ (1 / (curvature.full(phi, probs).diagonal().view(K, D) + tau)).T
    torch.testing.assert_close(form.variance(phi, tau), expected)
    torch.testing.assert_close(diagonal.logit_moments(phi, W, form.spread(tau))[1], expected)


def test_the_kronecker_posterior_inverts_the_product_of_its_factors():
    phi, W, probs, weights, _ = problem()
    form = measured("Kronecker", phi, probs, weights)
    B, A = curvature.kronecker(phi, probs, weights)
    S = inverse(torch.kron(B.contiguous(), A.contiguous()), 0.7)
    cov = form.variance(phi, 0.7)
    torch.testing.assert_close(cov, torch.einsum("ni,kilj,nj->nkl", phi, S, phi))
    var = eigen.logit_moments(phi, W, form.spread(0.7))[1]
    torch.testing.assert_close(var, cov.diagonal(dim1=1, dim2=2))


def test_one_eigenbasis_is_the_blocks_where_all_rows_predict_alike():
    phi, W, probs, weights, _ = problem()
    alike = probs[:1].expand(N, K)
    for w in (None, weights):
        form, blocks = measured("Eigen", phi, alike, w), measured("Block", phi, alike, w)
        for tau in (0.01, 3.0):
            expected = blocks.variance(phi, tau)
            torch.testing.assert_close(form.variance(phi, tau), expected)
            torch.testing.assert_close(eigen.logit_moments(phi, W, form.spread(tau))[1], expected)


def test_one_eigenbasis_is_nearer_to_the_blocks_than_no_basis():
    phi, W, _, _, _ = problem(n=300, d=8)
    phi = phi @ torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()
    probs = (phi @ W.T / 4).softmax(-1)
    block, one, none = (
        measured(name, phi, probs).variance(phi, 0.1) for name in ("Block", "Eigen", "Diagonal")
    )
    error = [float((v / block).log().abs().mean()) for v in (one, none)]
    assert error[0] < error[1] / 3


def test_fewer_rows_than_features_are_inverted_in_their_span():
    phi, W, probs, _, _ = problem(n=3, d=6)
    phi = torch.cat([phi, phi[:1] - phi[1:2]])  # and one of them is redundant
    probs = (phi @ W.T).softmax(1)
    span, block = measured("Span", phi, probs), measured("Block", phi, probs)
    assert span.basis.shape == (6, 3)
    x = torch.cat([phi, torch.randn(9, 6, generator=torch.Generator().manual_seed(4)).double()])
    for tau in (0.01, 2.0):
        expected = block.variance(x, tau)
        torch.testing.assert_close(span.variance(x, tau), expected)
        torch.testing.assert_close(subspace.logit_moments(x, W, span.spread(tau))[1], expected)


def test_two_classes_need_no_more_than_one_block():
    phi, _, probs, weights, _ = problem(k=2)
    own = curvature.bernoulli(probs, weights)
    form, full = laplace.Kronecker.of_two(phi, own), laplace.Full.of(phi, probs, weights)
    torch.testing.assert_close(form.variance(phi, 0.3), full.variance(phi, 0.3))
    torch.testing.assert_close(form.values.flatten().sort().values, full.values)


@pytest.mark.parametrize("name", FORMS)
def test_without_data_the_posterior_is_the_prior(name):
    form = measured(name, torch.zeros(0, D).double(), torch.zeros(0, K).double())
    phi, _, _, _, _ = problem()
    var = form.variance(phi, 4.0)
    alone = (phi.square().sum(1) / 4)[:, None].expand(N, K)
    torch.testing.assert_close(var, alone if var.ndim == 2 else torch.diag_embed(alone))


@pytest.mark.parametrize("name", FORMS)
def test_single_precision_survives_bad_conditioning(name):
    phi, _, probs, _, _ = problem()
    rank_one = (1e3 * phi[:, :1] * torch.ones(N, D)).float()
    var = measured(name, rank_one, probs.float()).variance(phi.float(), 1e-3)
    assert var.dtype == torch.float32
    assert torch.isfinite(var).all()


def test_class_blocks_of_two_classes_double_the_variance_of_the_difference():
    phi, _, probs, _, _ = problem(n=400, k=2)
    x, contrast = phi[:20], torch.tensor([1.0, -1.0]).double()
    for tau, low, high in ((1e-3, 1.999, 2.0), (1e3, 1.0, 1.1)):
        block = measured("Block", phi, probs).variance(x, tau).sum(1)
        exact = contrast @ measured("Full", phi, probs).variance(x, tau) @ contrast
        ratio = block / exact
        assert ((low <= ratio) & (ratio <= high + 1e-9)).all()


@pytest.mark.parametrize("name", FORMS)
def test_bad_precisions_and_features_are_errors(name):
    phi, _, probs, _, _ = problem()
    form = measured(name, phi, probs)
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="positive"):
            form.variance(phi, tau)
    if name != "Diagonal":
        phi[3] = math.inf
        with pytest.raises(NumericsError, match="not finite"):
            measured(name, phi, probs)


# another library --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other"),
    [("Full", "FullLaplace"), ("Kronecker", "KronLaplace"), ("Diagonal", "DiagLaplace")],
)
def test_laplace_torch_says_the_same(name, other):
    library = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    phi, W, probs, _, labels = problem()
    tau = 0.7
    linear = torch.nn.Linear(D, K, bias=False, dtype=torch.float64)
    linear.load_state_dict({"weight": W})
    peer = getattr(library, other)(linear, "classification", prior_precision=tau)
    rows = torch.utils.data.TensorDataset(phi, labels)
    peer.fit(torch.utils.data.DataLoader(rows, batch_size=N))
    mean, covariance = peer._glm_predictive_distribution(phi)
    form = measured(name, phi, probs)
    torch.testing.assert_close(phi @ W.T, mean)
    variance = form.variance(phi, tau)
    expected = covariance.diagonal(dim1=1, dim2=2) if name == "Diagonal" else covariance
    torch.testing.assert_close(variance, expected, rtol=1e-5, atol=1e-6)  # Full: single precision
    likelihood = -torch.nn.functional.cross_entropy(phi @ W.T, labels, reduction="sum")
    found = log_evidence(likelihood, W, torch.zeros_like(W), form.values, tau)
    evidence = peer.log_marginal_likelihood().detach()
    torch.testing.assert_close(found, evidence, rtol=1e-5, atol=1e-6)
