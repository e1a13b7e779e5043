"""The noise around a number: its bound, what it is refitted by, and how it is stored."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bayestune.errors import ConfigError, StoreError
from bayestune.head import GaussianHead, LinearHead, Noise
from bayestune.head.noise import Kind
from bayestune.posterior import regression

B, D = 40, 6
KINDS = get_args(Kind)


def moved(kind: str, seed: int = 0) -> Noise:
    """A noise in float64 whose parameters are away from their start."""
    noise = Noise(kind, in_features=D).double()  # pyright: ignore[reportArgumentType]
    noise.set_feature_energy(float(D))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).double())
    return noise


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, latent means and variances, and numbers."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal(B, D), normal(B, 1), 0.3 * normal(B, 1).square(), 1.5 * normal(B, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_with_all_variance_of_the_targets(kind, rows) -> None:
    noise = Noise(kind, in_features=D)
    noise.set_feature_energy(float(D))
    std = noise.variance(rows[0].float()).sqrt()
    assert bool(((std > 0.9) & (std < 1.3)).all())
    assert noise.dof is None or noise.dof == pytest.approx(8)


def test_the_bound_is_that_of_its_kind(rows) -> None:
    h, *latent = rows
    for kind in KINDS:
        noise = moved(kind)
        scale = noise.log_scale.exp()
        if kind == "gaussian":
            expected = regression.gaussian(*latent, scale)
        elif kind == "student":
            assert noise.dof is not None and noise.dof > 4
            expected = regression.student(*latent, scale, torch.tensor(noise.dof).double())
        else:
            assert noise.log_variance is not None
            m, s = noise.log_variance.moments(h)
            assert bool((s > 0).all())
            expected = regression.heteroscedastic(*latent, m + 2 * scale.log(), s)
        torch.testing.assert_close(noise.bound(h, *latent), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_row_weights_are_the_slope_of_the_bound(kind, rows) -> None:
    """∂ bound / ∂v = −½ r/σ²: what makes the posterior over f a weighted linear regression."""
    h, mu, var, y = rows
    noise = moved(kind)
    var = var.clone().requires_grad_()
    (slope,) = torch.autograd.grad(noise.bound(h, mu, var, y).sum(), var)
    weights = noise.row_weights(h, mu, var, y)
    torch.testing.assert_close(slope, -0.5 * weights / (2 * noise.log_scale).exp())


@pytest.mark.parametrize("kind", KINDS)
def test_the_level_is_fitted_to_the_maximum(kind, rows) -> None:
    noise = moved(kind)
    before = noise.bound(*rows).mean()
    noise.fit_level(*rows)
    after = noise.bound(*rows).mean()
    assert bool(after > before)
    (slope,) = torch.autograd.grad(after, noise.log_scale)
    assert float(slope.abs()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_variance_is_that_of_draws(kind) -> None:
    noise, draws = moved(kind), 200_000
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        h = torch.randn(1, D, dtype=torch.float64)
        std = noise.log_scale.exp().expand(draws, 1)
        epsilon = torch.randn(draws, 1, dtype=torch.float64)
        if kind == "heteroscedastic":
            assert noise.log_variance is not None
            m, s = noise.log_variance.moments(h)
            std = std * (0.5 * (m + s.sqrt() * torch.randn(draws, 1, dtype=torch.float64))).exp()
        if kind == "student":
            assert noise.dof is not None
            epsilon = torch.distributions.StudentT(noise.dof).sample((draws, 1)).double()
        squares = (std * epsilon).square()
        error = float(squares.std()) / draws**0.5
        assert float(noise.variance(h)) == pytest.approx(float(squares.mean()), abs=4 * error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_type", [GaussianHead, LinearHead])
def test_a_head_stores_and_names_all_of_it(kind, head_type) -> None:
    def make() -> GaussianHead | LinearHead:
        head = head_type(in_features=D, num_classes=1, noise=Noise(kind, in_features=D))
        head.set_feature_energy(10.0)
        return head

    head, other = make(), make()
    assert head.lr_factors().keys() >= {n for n, _ in head.named_parameters() if n != "log_scale"}
    with torch.no_grad():
        for i, parameter in enumerate(head.parameters()):
            parameter.add_(0.1 * (i + 1))
    stored = {name: t.clone() for name, t in head.posterior_tensors().items()}
    other.load_posterior(stored)
    for name, tensor in other.posterior_tensors().items():
        assert torch.equal(tensor, stored[name]), name
    assert not any(name == "weight" for name in stored)
    stored.pop("noise.log_scale")
    with pytest.raises(StoreError):
        other.load_posterior(stored)


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_widens_the_predictive_and_leaves_the_mean(kind) -> None:
    head = GaussianHead(in_features=D, num_classes=1, noise=Noise(kind, in_features=D))
    head.set_feature_energy(float(D))
    h = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(1))
        (mu, var), noise = head.moments(h), head.noise.variance(h)  # pyright: ignore
        head.fold_temperature(1.7)
        (mu_after, var_after), noise_after = head.moments(h), head.noise.variance(h)  # pyright: ignore
    assert torch.equal(mu, mu_after)
    torch.testing.assert_close(var_after, 1.7**2 * var)
    torch.testing.assert_close(noise_after, 1.7**2 * noise)


def test_the_kl_is_that_of_all_random_weights() -> None:
    head = GaussianHead(in_features=D, num_classes=1)
    head.set_feature_energy(float(D))
    alone = head.kl()
    for kind in KINDS:
        head.noise = moved(kind).float()
        own = head.noise.kl().detach()
        torch.testing.assert_close(head.kl().detach(), alone.detach() + own)
        assert (float(own) > 0.1) == (kind == "heteroscedastic")


def test_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'student'"):
        Noise("studnt", in_features=D)  # pyright: ignore[reportArgumentType]


# known noise is found again ----------------------------------------------------------------------


def learnt(kind: str, y_of, count: int = 1500, steps: int = 400) -> GaussianHead:
    """Train a head on fixed features of two dimensions by the ELBO."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(count, 2, generator=generator)
    y = y_of(h, generator)
    noise = Noise(kind, in_features=2)  # pyright: ignore[reportArgumentType]
    head = GaussianHead(in_features=2, num_classes=1, noise=noise, prior_scale=10.0)
    head.set_feature_energy(h)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (head.kl() / count - head.bound(h, y).mean()).backward()
        optimiser.step()
        schedule.step()
    return head


def test_heteroscedastic_finds_which_inputs_are_noisy() -> None:
    """log σ² = 2 log 0.2 + 1.2 h₀."""

    def y_of(h: Tensor, generator: torch.Generator) -> Tensor:
        std = 0.2 * (0.6 * h[:, :1]).exp()
        return h @ torch.tensor([[0.5], [-1.0]]) + std * torch.randn(len(h), 1, generator=generator)

    head = learnt("heteroscedastic", y_of)
    assert head.noise is not None and head.noise.log_variance is not None
    torch.testing.assert_close(head.weight, torch.tensor([[0.5, -1.0]]), atol=0.03, rtol=0)
    slope = head.noise.log_variance.weight.detach()
    torch.testing.assert_close(slope, torch.tensor([[1.2, 0.0]]), atol=0.12, rtol=0)
    assert float(head.noise.log_scale.detach()) == pytest.approx(math.log(0.2), abs=0.06)


def test_student_finds_scale_and_tails_and_gaussian_does_not() -> None:
    def y_of(h: Tensor, generator: torch.Generator) -> Tensor:
        normal = torch.randn(len(h), 7, generator=generator)
        chi = (normal[:, 1:].square().sum(1, keepdim=True) / 6).sqrt()
        return h @ torch.tensor([[0.5], [-1.0]]) + 0.3 * normal[:, :1] / chi

    head = learnt("student", y_of)
    assert head.noise is not None and head.noise.dof is not None
    assert float(head.noise.log_scale.detach()) == pytest.approx(math.log(0.3), abs=0.08)
    assert 4.5 < head.noise.dof < 9
    gaussian = learnt("gaussian", y_of)
    assert gaussian.noise is not None
    assert float(gaussian.noise.log_scale.detach()) > math.log(0.3) + 0.1
