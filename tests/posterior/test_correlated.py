"""Predictives of correlated logits, and memory bounded by blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bayestune.config import PredictConfig
from bayestune.errors import ConfigError, NumericsError
from bayestune.finalize import predictive_at
from bayestune.posterior import Predictive, predictive, quadrature
from bayestune.posterior.sampling import lower_factor


def problem(B: int, K: int, variance: float, seed: int = 0, rank: int | None = None):
    """Return means and covariances of full rank, or of the given one."""
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(B, K, generator=g, dtype=torch.float64)
    A = torch.randn(B, K, rank or K, generator=g, dtype=torch.float64)
    return mu, variance / A.shape[2] * A @ A.mT


def draws(mu: Tensor, root: Tensor, count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Return softmax and entropy of draws of one row ``(K,)`` with covariance root rootᵀ."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, root.shape[1], generator=g, dtype=torch.float64)
    log_p = (mu + noise @ root.T).log_softmax(1)
    return log_p.exp(), -(log_p.exp() * log_p).sum(1)


@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("variance", [0.5, 5.0, 50.0])
def test_against_a_million_draws(K, variance):
    mu, cov = problem(1, K, variance, seed=K)
    p, entropy = draws(mu[0], torch.linalg.cholesky(cov[0]), 10**6)
    for method in ("sample", "exact") if K == 2 else ("sample",):
        samples = 2**14 if method == "sample" else None
        found = Predictive.from_moments(mu, cov, method=method, samples=samples)
        assert ((found.probs[0] - p.mean(0)).abs() < 4 * p.std(0) / 1e3).all()
        assert abs(found.aleatoric[0] - entropy.mean()) < 4 * entropy.std() / 1e3
    # Taking the variances alone is another predictive.
    alone = Predictive.from_moments(mu, cov.diagonal(dim1=1, dim2=2), method="exact")
    assert ((alone.probs[0] - p.mean(0)).abs() > 4 * p.std(0) / 1e3).any()


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.8, 1.0])
def test_two_classes_against_brute_force(correlation):
    s, t = 1.5, 0.7
    cov = torch.tensor([[s * s, correlation * s * t], [correlation * s * t, t * t]]).double()
    mu = torch.tensor([[0.4, -0.9]], dtype=torch.float64)
    width = math.sqrt(s * s + t * t - 2 * correlation * s * t)
    d = 1.3 + width * torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = (-0.5 * ((d - 1.3) / width) ** 2).exp()
    weight = weight / weight.sum()
    entropy = torch.special.entr(d.sigmoid()) + torch.special.entr((-d).sigmoid())
    for method in ("auto", "exact"):
        found = Predictive.from_moments(mu, cov.unsqueeze(0), method=method)
        assert abs(found.probs[0, 0] - weight @ d.sigmoid()) < 1e-6
        assert abs(found.aleatoric[0] - weight @ entropy) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_direction_against_brute_force(dtype):
    mu, _ = problem(1, 5, 1.0)
    direction = torch.tensor([2.0, -1.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    weight = (-0.5 * x**2).exp() / (-0.5 * x**2).exp().sum()
    log_p = (mu + torch.outer(x, direction)).log_softmax(1)
    cov = torch.outer(direction, direction).unsqueeze(0)
    found = Predictive.from_moments(mu.to(dtype), cov.to(dtype), method="sample")
    assert (found.probs[0] - weight @ log_p.exp()).abs().max() < 1e-3
    assert abs(found.aleatoric[0] + weight @ (log_p.exp() * log_p).sum(1)) < 2e-3


@pytest.mark.parametrize("method", ["sample", "exact", "probit", "laplace_bridge"])
@pytest.mark.parametrize("K", [2, 9])
def test_a_diagonal_covariance_is_its_variances(method, K):
    mu, cov = problem(7, K, 3.0)
    var = cov.diagonal(dim1=1, dim2=2).clone()
    var[0, 0] = 0.0
    if method == "exact" and K > 2:
        with pytest.raises(ConfigError, match="got a covariance of 9"):
            Predictive.from_moments(mu, torch.diag_embed(var), method=method)
        return
    p = Predictive.from_moments(mu, torch.diag_embed(var), method=method)
    q = Predictive.from_moments(mu, var, method=method)
    torch.testing.assert_close(p.probs, q.probs)
    torch.testing.assert_close(p.epistemic, q.epistemic, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("K", "rank"), [(3, 1), (20, 4), (150, 20), (150, 149)])
def test_the_factor_of_a_singular_covariance(K, rank, dtype):
    _, cov = problem(4, K, 10.0, rank=rank)
    cov = cov.to(dtype)
    L = lower_factor(cov)
    assert torch.equal(L, L.tril())
    tolerance = 10 * 1e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(L @ L.mT, cov, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        (L @ L.mT).diagonal(dim1=1, dim2=2), cov.diagonal(dim1=1, dim2=2), rtol=1e-5, atol=0
    )
    # A singular row changes nothing about a regular one.
    regular = cov[1:2] + torch.eye(K, dtype=dtype)
    mixed = lower_factor(torch.cat([cov[:1], regular]))
    torch.testing.assert_close(mixed[1:], torch.linalg.cholesky(regular), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_that_no_data_saw_does_not_matter(dtype):
    # The curvature of softmax is blind to the all-ones direction: only the prior is left there.
    mu, cov = problem(5, 6, 2.0)
    P = torch.eye(6, dtype=torch.float64) - 1 / 6
    seen = P @ cov @ P
    expected = Predictive.from_moments(mu, seen, method="sample", samples=2**13)
    for prior in (0.0, 1.0, 1e3):
        p = Predictive.from_moments(mu.to(dtype), (seen + prior).to(dtype), samples=2**13)
        assert (p.probs - expected.probs).abs().max() < 2e-3
        assert (p.epistemic - expected.epistemic).abs().max() < 2e-3


@pytest.mark.parametrize("method", ["sample", "probit", "laplace_bridge"])
def test_renaming_the_classes_only_renames_them(method):
    mu, cov = problem(7, 9, 3.0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    p = Predictive.from_moments(mu, cov, method=method)
    q = Predictive.from_moments(mu[:, order], cov[:, order][:, :, order], method=method)
    torch.testing.assert_close(q.probs, p.probs[:, order])
    torch.testing.assert_close(q.epistemic, p.epistemic)


@pytest.mark.parametrize("K", [3, 2])
def test_absent_classes_do_not_exist(K):
    mu, cov = problem(6, K + 1, 3.0)
    mu[:, K] = 50.0
    mask = (torch.arange(K + 1) < K).repeat(6, 1)
    mask[2, 1:] = False
    p = Predictive.from_moments(mu, cov, mask=mask, samples=2**13)
    assert (p.probs[~mask] == 0).all()
    assert p.probs[2, 0] == 1
    assert p.entropy[2] == 0
    rows = [0, 1, 3, 4, 5]
    few = Predictive.from_moments(mu[rows, :K], cov[rows, :K, :K], samples=2**13)
    torch.testing.assert_close(p.probs[rows, :K], few.probs, rtol=0, atol=1e-3)
    torch.testing.assert_close(p.epistemic[rows], few.epistemic, rtol=0, atol=1e-3)


def test_one_of_two_classes_may_be_absent():
    mu, cov = problem(3, 2, 3.0)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    p = Predictive.from_moments(mu, cov, method="exact", mask=mask)
    both = Predictive.from_moments(mu, cov, method="exact")
    assert torch.equal(p.probs[1:], mask[1:].double())
    assert torch.equal(p.probs[0], both.probs[0])
    assert p.entropy[1:].max() == 0


@pytest.mark.parametrize("rank", [None, 2])
def test_gradients_are_finite(rank):
    mu, cov = problem(2, 4, 1.0, rank=rank)
    for method in ("sample", "probit", "laplace_bridge"):
        m, C = mu.clone().requires_grad_(), cov.clone().requires_grad_()
        Predictive.from_moments(m, C, method=method).probs[:, 0].log().sum().backward()
        assert torch.isfinite(m.grad).all()
        assert torch.isfinite(C.grad).all()
        assert C.grad.abs().max() > 0


def test_what_is_no_covariance_is_an_error():
    mu, cov = problem(2, 3, 1.0)
    with pytest.raises(NumericsError, match=r"eigenvalue -0\.78"):
        unit = torch.eye(3, dtype=torch.float64)
        Predictive.from_moments(mu, torch.stack([unit, (unit - 0.9).abs() * -9 + 10 * unit]))
    with pytest.raises(NumericsError, match="not symmetric"):
        Predictive.from_moments(mu, cov + torch.ones(3, 3).triu(1))
    with pytest.raises(NumericsError, match="negative"):
        Predictive.from_moments(mu, -cov)


def test_a_temperature_divides_the_covariance_by_its_square():
    mu, cov = problem(4, 3, 2.0)
    config = PredictConfig(samples=64)
    p = predictive_at(mu, cov, 2.0, config=config)
    q = Predictive.from_moments(mu / 2, cov / 4, samples=64)
    assert torch.equal(p.probs, q.probs)


# memory ------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The bytes of the largest storage that an operation makes, but for joining the results."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.inputs = {t.untyped_storage().data_ptr() for t in inputs}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and func is not torch.ops.aten.cat.default:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.inputs:
                    self.bytes = max(self.bytes, storage.nbytes())
        return out


@pytest.mark.parametrize("method", ["sample", "exact", "probit", "laplace_bridge", "draws"])
@pytest.mark.parametrize("covariance", [False, True])
def test_temporaries_do_not_grow_with_the_batch(method, covariance, monkeypatch):
    monkeypatch.setattr(predictive, "_NUMBERS", 2**10)
    monkeypatch.setattr(quadrature, "_ELEMENTS", 2**12)
    K = 2 if covariance and method == "exact" else 16
    found = []
    for B in (600, 1800) if K == 2 else (100, 300):
        mu, cov = problem(B, K, 3.0)
        spread = cov if covariance else cov.diagonal(dim1=1, dim2=2).clone()
        logits = torch.stack([mu, mu + 1])
        with Largest(mu, spread, logits) as seen:
            if method == "draws":
                Predictive.from_samples(logits)
            else:
                Predictive.from_moments(mu, spread, method=method, samples=64)
        found.append(seen.bytes)
    # The quadrature takes rows of one grid length together, as many as there are up to its limit.
    slack = 1.5 if method == "exact" else 1.0
    assert 0 < found[1] <= slack * found[0]
    assert found[1] <= 8 * 2**17


def test_two_classes_are_integrated_in_blocks_too(monkeypatch):
    mean = torch.linspace(-3, 3, 2000, dtype=torch.float64)
    whole = quadrature.expected_sigmoid(mean, mean.square())
    monkeypatch.setattr(quadrature, "_ELEMENTS", 2**12)
    with Largest(mean) as seen:
        blocks = quadrature.expected_sigmoid(mean, mean.square())
    assert seen.bytes < 2 * 8 * 2**12
    for one, other in zip(blocks, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["sample", "exact", "probit", "laplace_bridge", "draws"])
def test_the_size_of_a_block_changes_nothing(method, monkeypatch):
    mu, cov = problem(50, 16, 3.0)
    var = cov.diagonal(dim1=1, dim2=2).clone()
    mask = torch.rand(50, 16, generator=torch.Generator().manual_seed(0)) < 0.8

    def predict() -> list[Predictive]:
        if method == "draws":
            return [Predictive.from_samples(torch.stack([mu, mu + var]), mask)]
        return [
            Predictive.from_moments(mu, spread, method=method, mask=mask)
            for spread in ((var,) if method == "exact" else (var, cov))
        ]

    whole = predict()
    for numbers in (1, 3 * 16, 7 * 256):
        monkeypatch.setattr(predictive, "_NUMBERS", numbers)
        for p, q in zip(predict(), whole, strict=True):
            assert torch.equal(p.probs, q.probs)
            assert torch.equal(p.aleatoric, q.aleatoric)
