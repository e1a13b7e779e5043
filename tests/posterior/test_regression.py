"""Expected log likelihoods of numbers against quadrature, Monte Carlo and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, StudentT

from bayestune.errors import NumericsError
from bayestune.posterior import regression
from bayestune.posterior.regression import RegressionPredictive

B, K, DRAWS = 6, 3, 100_000


@pytest.fixture
def case() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "mu": normal(B, K),
        "var": normal(B, K).square() + 0.01,
        "y": 2 * normal(B, K),
        "scale": (0.5 * normal(K)).exp(),
    }


def draws(mean: Tensor, var: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((DRAWS, *mean.shape), generator=generator, dtype=mean.dtype)
    return mean + var.sqrt() * noise


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    """Compare at four standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    assert bool(((samples.mean(0) - expected).abs() < 4 * error).all())


def test_gaussian_is_the_expectation_itself(case) -> None:
    f = draws(case["mu"], case["var"])
    samples = Normal(f, case["scale"]).log_prob(case["y"]).sum(-1)
    assert_mean(samples, regression.gaussian(**case))


def test_heteroscedastic_is_the_expectation_itself(case) -> None:
    mu, var, y = case["mu"], case["var"], case["y"]
    m, s = 0.5 * mu.flip(0), 0.3 * var.flip(0)
    f, log_var = draws(mu, var), draws(m, s, seed=2)
    samples = Normal(f, (0.5 * log_var).exp()).log_prob(y).sum(-1)
    assert_mean(samples, regression.heteroscedastic(mu, var, y, m, s))
    # The precision of a log-normal variance, not the reciprocal of its mean.
    assert_mean((-log_var).exp(), (0.5 * s - m).exp())
    assert_mean(log_var.exp(), (0.5 * s + m).exp())


def test_student_is_a_bound_and_tight_without_variance(case) -> None:
    dof = torch.tensor(3.5, dtype=torch.float64)
    samples = StudentT(dof, draws(case["mu"], case["var"]), case["scale"]).log_prob(case["y"])
    exact, error = samples.sum(-1).mean(0), samples.sum(-1).std(0) / DRAWS**0.5
    bound = regression.student(**case, dof=dof)
    assert bool((bound < exact + 4 * error).all()) and bool((bound < exact - 0.1).any())
    still = {**case, "var": torch.zeros_like(case["var"])}
    expected = StudentT(dof, case["mu"], case["scale"]).log_prob(case["y"]).sum(-1)
    torch.testing.assert_close(regression.student(**still, dof=dof), expected)


def test_student_is_the_best_gamma_posterior_over_the_precision(case) -> None:
    """E log p(y, λ) − E log q(λ) at q = Gamma((ν + 1)/2, (ν + e)/2), e = (r² + v)/σ²."""
    nu = 3.5
    e = ((case["y"] - case["mu"]).square() + case["var"]) / case["scale"].square()

    def evidence(a: Tensor, b: Tensor) -> Tensor:
        log_lambda, mean = torch.digamma(a) - b.log(), a / b
        half = torch.tensor(nu / 2, dtype=torch.float64)
        likelihood = 0.5 * (log_lambda - math.log(2 * math.pi) - mean * e) - case["scale"].log()
        prior = half * half.log() - half.lgamma() + (half - 1) * log_lambda - half * mean
        return (likelihood + prior + Gamma(a, b).entropy()).sum(-1)

    a, b = torch.full_like(e, (nu + 1) / 2), (nu + e) / 2
    bound = regression.student(**case, dof=torch.tensor(nu, dtype=torch.float64))
    torch.testing.assert_close(evidence(a, b), bound)
    assert bool((evidence(1.1 * a, b) < bound).all())
    assert bool((evidence(a, 1.1 * b) < bound).all())


@pytest.mark.parametrize("kind", ["gaussian", "student", "heteroscedastic"])
def test_each_output_pays_for_its_own_variance_alone(case, kind) -> None:
    """The slope in v_k is minus half the precision of output k, whatever the other outputs."""

    def bound(var: Tensor, scale: Tensor) -> Tensor:
        latent = (case["mu"], var, case["y"])
        if kind == "heteroscedastic":
            m = (2 * scale.log()).expand(B, K)
            return regression.heteroscedastic(*latent, m, torch.zeros_like(m))
        if kind == "student":
            return regression.student(*latent, scale, torch.tensor(1e9, dtype=torch.float64))
        return regression.gaussian(*latent, scale)

    var = case["var"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(bound(var, case["scale"]).sum(), var)
    expected = (-0.5 / case["scale"].square()).expand(B, K)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=0)
    together = bound(case["var"], case["scale"])
    parts = sum(
        regression.gaussian(*(case[n][:, k, None] for n in ("mu", "var", "y")), case["scale"][k])
        for k in range(K)
    )
    torch.testing.assert_close(together, parts, rtol=1e-6, atol=1e-6)


def test_the_predictive_has_the_variance_of_its_parts() -> None:
    mu, var, noise = (torch.tensor([[v], [2 * v]]) for v in (1.0, 0.09, 0.16))
    predictive = RegressionPredictive.from_moments(mu, var, noise)
    torch.testing.assert_close(predictive.std.square(), (var + noise).flatten())
    moved = predictive.affine(10.0, 5.0)
    torch.testing.assert_close(moved.mean, torch.tensor([15.0, 20.0]).double())
    torch.testing.assert_close(moved.std, 5 * predictive.std.double())
    with pytest.raises(NumericsError, match="NaN"):
        RegressionPredictive.from_moments(mu * math.nan, var, noise)
    with pytest.raises(NumericsError, match="negative"):
        RegressionPredictive.from_moments(mu, -var, noise)


@pytest.mark.parametrize("v", [0.0, 0.3, 3.0])
def test_the_student_predictive_keeps_four_moments_of_the_exact_one(v) -> None:
    """Cumulants of independent summands add; the fourth of a Student-t is 6 var²/(ν − 4)."""
    nu, noise_var = 6.0, 0.8
    predictive = RegressionPredictive.from_moments(
        torch.zeros(1, 1), torch.full((1, 1), v), torch.full((1, 1), noise_var), nu
    )
    var, dof = float(predictive.std) ** 2, float(predictive.dof)  # pyright: ignore
    assert var == pytest.approx(v + noise_var)
    assert 6 * var**2 / (dof - 4) == pytest.approx(6 * noise_var**2 / (nu - 4), rel=1e-5)
    assert dof >= nu


def test_the_student_predictive_is_close_to_the_exact_one() -> None:
    """Against f ~ N(μ, v) plus Student-t noise, integrated: total variation below 1.5 %."""
    nu, scale, v = 6.0, 0.7, 0.3
    noise_var = scale**2 * nu / (nu - 2)
    moments = (torch.zeros(1, 1), torch.full((1, 1), v), torch.full((1, 1), noise_var))
    predictive = RegressionPredictive.from_moments(*moments, nu)
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    step = float(grid[1] - grid[0])
    f = Normal(torch.tensor(0.0).double(), v**0.5)
    weights = f.log_prob(grid).exp() * step
    exact = StudentT(torch.tensor(nu).double(), 0.0, scale)
    density = exact.log_prob(grid[:, None] - grid).exp() @ weights
    assert float(density.sum() * step) == pytest.approx(1, abs=1e-3)
    dof, std = predictive.dof, predictive.std.double()
    own = StudentT(dof, 0.0, std * ((dof - 2) / dof).sqrt()).log_prob(grid).exp()  # pyright: ignore
    assert 0.5 * float((density - own).abs().sum() * step) < 0.015
