"""The refreshed posterior over numbers is the exact one, at the noise of maximum evidence."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from torch import Tensor

from bayestune.config import FinalizeConfig
from bayestune.errors import ConfigError
from bayestune.finalize import (
    Features,
    finish_regression,
    fit_std_factor,
    regression_losses,
    regression_predictive,
)
from bayestune.finalize.options import PRECISIONS
from bayestune.head import GaussianHead, LinearHead, Noise
from bayestune.posterior.regression import RegressionPredictive

D = 4
TRUE = torch.tensor([0.8, -0.5, 0.0, 0.3])


def rows(count: int, seed: int, noise: float = 0.3, outliers: float = 0.0, unit=1.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(count, D, generator=generator)
    y = phi @ TRUE + noise * torch.randn(count, generator=generator)
    wrong = torch.rand(count, generator=generator) < outliers
    return Features(phi, torch.where(wrong, y + 20, y)[:, None], unit=unit)


def new_head(kind: str = "gaussian", fit: Features | None = None, **options) -> GaussianHead:
    noise = Noise(kind, in_features=D)  # pyright: ignore[reportArgumentType]
    head = GaussianHead(in_features=D, num_classes=1, noise=noise, **options)
    head.set_feature_energy((fit or rows(50, 0)).phi)
    return head


def exact(fit: Features, precision: float) -> tuple[float, Tensor, Tensor]:
    """Noise, mean and covariance by scipy and one inverse, in float64."""
    phi, y = fit.phi.double(), fit.labels[:, 0].double()

    def loss(log_noise: float) -> float:
        eye = torch.eye(len(y), dtype=torch.float64)
        covariance = math.exp(2 * log_noise) * eye + phi @ phi.T / precision
        return -float(multivariate_normal(torch.zeros(len(y)), covariance.numpy()).logpdf(y))

    noise = math.exp(minimize_scalar(loss, bounds=(-4, 2), method="bounded").x)
    root = phi.T @ phi / noise**2 + precision * torch.eye(D, dtype=torch.float64)
    covariance = torch.linalg.inv(root)
    return noise, covariance @ phi.T @ y / noise**2, covariance


@pytest.mark.parametrize("refresh", ["block", "eigen", "diagonal"])
def test_it_is_the_exact_posterior(refresh) -> None:
    fit = rows(60, 0)
    head = new_head(fit=fit)
    unit = math.exp(-float(head.log_prior_variance))
    config = FinalizeConfig(refresh=refresh, precision=2.0, temperature="none")
    _, chosen = finish_regression(head, fit, None, config)
    assert (chosen.covariance, chosen.value, chosen.temperature) == ("refreshed", 2.0, 1.0)
    noise, mean, covariance = exact(fit, 2.0 * unit)
    assert head.noise is not None
    assert float(head.noise.log_scale.detach().exp()) == pytest.approx(noise, rel=0.01)
    assert noise == pytest.approx(0.3, rel=0.2)
    torch.testing.assert_close(head.weight[0].double(), mean, rtol=1e-2, atol=1e-3)
    h = rows(7, 3).phi
    _, var = head.moments(h)
    if refresh == "diagonal":
        assert head.family == "diagonal"
        covariance = torch.diag(1 / torch.linalg.inv(covariance).diagonal())
    expected = ((h.double() @ covariance) * h).sum(1)
    torch.testing.assert_close(var[:, 0].double(), expected, rtol=0.03, atol=0)


def test_what_is_chosen_is_what_was_measured() -> None:
    """The losses of the delivered head at its factor are those that it was chosen by."""
    fit, held_out = rows(60, 0, unit=5.0), rows(80, 1, unit=5.0)
    for kind in ("gaussian", "student", "heteroscedastic"):
        for refresh in ("none", "block", "diagonal"):
            head = new_head(kind, fit)
            config = FinalizeConfig(refresh=refresh)
            tried, chosen = finish_regression(head, fit, held_out, config)
            head.fold_temperature(chosen.temperature)
            losses = regression_losses(regression_predictive(head, held_out.phi), held_out)
            assert float(losses.mean()) == pytest.approx(chosen.nll, abs=2e-3)
            assert len(tried) == (6 if refresh == "none" else 12)


def test_the_refit_is_preferred_and_recovers_the_line() -> None:
    fit, held_out = rows(200, 0), rows(100, 1)
    head = new_head(fit=fit)  # its mean is still zero
    _, chosen = finish_regression(head, fit, held_out, FinalizeConfig())
    assert chosen.covariance == "refreshed"
    torch.testing.assert_close(head.weight[0], TRUE, atol=0.08, rtol=0)
    assert 0.7 < chosen.temperature < 1.4


def test_student_ignores_outliers_that_drag_a_gaussian() -> None:
    fit, clean = rows(300, 0, outliers=0.05), rows(200, 1)
    error = {}
    for kind in ("gaussian", "student"):
        head = new_head(kind, fit)
        optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            (head.kl() / len(fit) - head.bound(fit.phi, fit.labels).mean()).backward()
            optimiser.step()
        finish_regression(head, fit, rows(100, 2, outliers=0.05), FinalizeConfig(refresh="block"))
        mean = regression_predictive(head, clean.phi).mean
        error[kind] = float((mean - clean.phi @ TRUE).square().mean().sqrt())
    assert error["student"] < 0.15 < 0.3 < error["gaussian"]


def test_a_point_gets_the_noise_of_maximum_likelihood() -> None:
    fit = rows(100, 0)
    head = LinearHead(in_features=D, num_classes=1, noise=Noise("gaussian", in_features=D))
    with torch.no_grad():
        head.weight.copy_(TRUE[None] + 0.1)
    config = FinalizeConfig(refresh="none", temperature="none")
    finish_regression(head, fit, None, config)
    predictive = regression_predictive(head, fit.phi)
    residual = fit.labels[:, 0] - fit.phi @ (TRUE + 0.1)
    torch.testing.assert_close(predictive.std[0], residual.square().mean().sqrt())
    assert not bool(predictive.epistemic.any())


def test_the_factor_finds_how_much_too_narrow() -> None:
    held_out = rows(2000, 1)
    mean, small = held_out.phi @ TRUE, torch.full((2000,), 0.1)
    predictive = RegressionPredictive(mean, small, torch.zeros(2000))
    factor, nll = fit_std_factor(predictive, held_out)
    assert factor == pytest.approx(3.0, rel=0.05)
    assert nll == pytest.approx(float(regression_losses(predictive, held_out, factor).mean()))
    few = Features(held_out.phi[:2], held_out.labels[:2])
    narrow = RegressionPredictive(mean[:2], small[:2] / 2, torch.zeros(2))
    likeliest = float(((few.labels[:, 0] - mean[:2]) / 0.05).square().mean().sqrt())
    assert 1.5 < fit_std_factor(narrow, few)[0] < 0.6 * likeliest  # the prior holds two rows back


def test_the_evidence_may_choose_the_precision() -> None:
    fit = rows(60, 0)
    head = new_head(fit=fit)
    unit = math.exp(-float(head.log_prior_variance))
    config = FinalizeConfig(refresh="block", precision="evidence", temperature="none")
    tried, chosen = finish_regression(head, fit, None, config)
    assert tried == [chosen]
    phi, y = fit.phi.double(), fit.labels[:, 0].double()

    def by_hand(value: float) -> float:
        noise, _, _ = exact(fit, value * unit)
        covariance = noise**2 * torch.eye(60, dtype=torch.float64) + phi @ phi.T / (value * unit)
        return float(multivariate_normal(torch.zeros(60), covariance.numpy()).logpdf(y))

    assert chosen.value == max(PRECISIONS, key=by_hand)
    assert chosen.log_evidence == pytest.approx(by_hand(chosen.value), abs=0.01)


def test_what_only_classes_have_is_refused() -> None:
    fit = rows(20, 0)
    for options in ({"refit": "ascent"}, {"groups": "feature"}):
        with pytest.raises(ConfigError, match="about classes"):
            finish_regression(new_head(), fit, fit, FinalizeConfig(**options))


def test_losses_are_in_the_unit_of_the_user() -> None:
    held_out = rows(10, 1)
    head = new_head()
    own = regression_losses(regression_predictive(head, held_out.phi), held_out)
    metres = Features(held_out.phi, held_out.labels, unit=1000.0)
    in_metres = regression_losses(regression_predictive(head, metres.phi), metres)
    torch.testing.assert_close(in_metres, own + math.log(1000))


def test_choices_need_held_out_rows() -> None:
    fit = rows(20, 0)
    with pytest.raises(ConfigError, match="held-out"):
        finish_regression(new_head(), fit, None, FinalizeConfig())
    point = LinearHead(in_features=D, num_classes=1, noise=Noise("gaussian", in_features=D))
    with pytest.raises(ConfigError, match="temperature=auto"):
        finish_regression(point, fit, None, FinalizeConfig(refresh="none"))
    with pytest.raises(ConfigError, match="no noise"):
        finish_regression(GaussianHead(in_features=D, num_classes=2), fit, None, FinalizeConfig())
