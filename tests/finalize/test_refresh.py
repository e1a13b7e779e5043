"""The covariance that is delivered: the Laplace refresh by brute force, and the choice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from bayestune.config import FinalizeConfig, HeadConfig, PredictConfig, Recipe
from bayestune.errors import ConfigError
from bayestune.finalize import Features, predictive_at, select
from bayestune.finalize.options import PRECISIONS, SCALES
from bayestune.finalize.refresh import BLOCK_LIMIT, REFRESHES, form_of, install, measure
from bayestune.head import GaussianHead, LinearHead
from bayestune.methods import parts
from bayestune.progress import Advance

#: Nothing is left to choose unless a test opens it.
FIXED: dict[str, Any] = {"refresh": "block", "precision": 1.0, "scale": 1.0, "temperature": "none"}


def config(**changes: Any) -> FinalizeConfig:
    return FinalizeConfig(**{**FIXED, **changes})


def inverses(head: GaussianHead, fit: Features, precision: float) -> Tensor:
    """Return (τI + Σ_n ω_n p(1 − p) φφᵀ)⁻¹ of every class, by the definition and in float64."""
    W, phi = head.weight.detach().double(), fit.phi.double()
    K, D = W.shape
    total = precision * torch.eye(D, dtype=torch.float64).repeat(K, 1, 1)
    for n, row in enumerate(phi):
        logits = W @ row
        if fit.mask is not None:
            logits[~fit.mask[n]] = -torch.inf
        p = logits.softmax(0)
        weight = 1.0 if fit.weights is None else float(fit.weights[n])
        for k in range(K):
            total[k] += weight * p[k] * (1 - p[k]) * torch.outer(row, row)
    return torch.linalg.inv(total)


def unit(head: GaussianHead) -> float:
    """Precision of the prior, 1/σ₀²."""
    return math.exp(-float(head.log_prior_variance))


# brute force ------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_dense_covariance_is_the_inverse_of_the_curvature(
    rows, gaussian, masked, weighed
) -> None:
    fit, head = rows(60, masked=masked, weighed=weighed), gaussian()
    mean = head.weight.detach().clone()
    expected = inverses(head, fit, 1.7 * unit(head))
    select(head, fit, None, config(precision=1.7))
    assert head.family == "dense" and torch.equal(head.weight, mean)
    factor = head.factor.double()
    torch.testing.assert_close(factor @ factor.mT, expected, rtol=1e-4, atol=1e-7)
    phi = rows(20, 5).phi
    _, var = head.moments(phi)
    by_hand = torch.einsum("nd,kde,ne->nk", phi.double(), expected, phi.double())  # (N, K)
    torch.testing.assert_close(var.double(), by_hand, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_diagonal_covariance_is_the_inverse_of_the_diagonal(
    rows, gaussian, masked, weighed
) -> None:
    fit, head = rows(60, masked=masked, weighed=weighed), gaussian()
    tau = 0.4 * unit(head)
    precisions = torch.linalg.inv(inverses(head, fit, tau)).diagonal(dim1=1, dim2=2)  # (K, D)
    select(head, fit, None, config(refresh="diagonal", precision=0.4))
    assert head.family == "diagonal"
    variances = head.log_scale.detach().double().exp().square()
    torch.testing.assert_close(variances, 1 / precisions, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_eigen_covariance_is_the_inverse_of_the_diagonal_in_its_basis(
    rows, gaussian, masked, weighed
) -> None:
    fit, head = rows(60, masked=masked, weighed=weighed), gaussian()
    tau = 0.4 * unit(head)
    precisions = torch.linalg.inv(inverses(head, fit, tau))  # (K, D, D)
    select(head, fit, None, config(refresh="eigen", precision=0.4))
    assert head.family == "eigen"
    Q = head.basis.double()
    turned = (Q.T @ precisions @ Q).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(head.log_scale.double().exp() ** -2, turned, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("count", [40, 4])
@pytest.mark.parametrize("refresh", REFRESHES)
def test_one_measurement_serves_every_precision(rows, gaussian, refresh, count) -> None:
    fit, head, phi = rows(count), gaussian(), rows(15, 3).phi
    form = measure(head, head.weight, fit, refresh)
    for tau in (0.01, 1.0, 50.0):
        copy = deepcopy(head)
        install(copy, form, tau)
        torch.testing.assert_close(
            form.variance(phi, tau), copy.moments(phi)[1], rtol=1e-4, atol=1e-5
        )


def test_without_data_the_refresh_is_the_prior(rows, gaussian) -> None:
    head = gaussian()
    nothing = Features(rows(1).phi[:0], torch.empty(0, dtype=torch.int64))
    select(head, nothing, None, config(precision=2.0))
    identity = torch.eye(6).expand(4, 6, 6)
    torch.testing.assert_close(
        head.factor @ head.factor.mT, identity / (2 * unit(head)), rtol=1e-5, atol=1e-6
    )


def test_auto_takes_dense_blocks_while_they_are_small(gaussian) -> None:
    assert form_of("auto", gaussian(), 10**6) == "block"
    wide = GaussianHead(in_features=2048, num_classes=BLOCK_LIMIT // 2048**2 + 1)
    assert form_of("auto", wide, 10**6) == "eigen"
    assert form_of("auto", wide, 100) == "block"  # a few rows span little
    assert form_of("block", wide, 10**6) == "block"
    with pytest.raises(ConfigError, match="use kronecker"):
        form_of("full", wide, 10**6)


# choosing ---------------------------------------------------------------------------------------


def nll(head: GaussianHead, spread: Tensor, held: Features, temperature: float = 1.0) -> float:
    """Return the held-out NLL at covariances (K, D, D), in float64 and by its definition."""
    phi = held.phi.double()
    mu = phi @ head.weight.detach().double().T
    var = torch.einsum("nd,kde,ne->nk", phi, spread, phi)  # (N, K)
    probs = predictive_at(mu, var, temperature).probs
    return float(-probs.gather(1, held.labels[:, None]).log().mean())


def cost(mean_nll: float, precision: float, rows: int) -> float:
    """Return what is minimised: one decade away from the prior's own precision costs half a nat."""
    return rows * mean_nll + 0.5 * math.log10(precision) ** 2


def test_few_held_out_rows_do_not_drive_the_choice_to_extremes(rows, gaussian) -> None:
    fit, held = rows(60), rows(400, 1)
    free: set[float] = set()
    for start in range(0, 40, 4):
        few = Features(held.phi[start : start + 4], held.labels[start : start + 4])
        tried, chosen = select(gaussian(), fit, few, config(precision="auto"))
        free.add(min(tried, key=lambda c: c.nll).value)
        assert 0.03 <= chosen.value <= 30
    assert free & {PRECISIONS[0], PRECISIONS[-1]}  # where the likelihood alone would have gone


@pytest.mark.parametrize("confidence", [0.5, 1.0, 4.0])
def test_the_precision_is_the_likeliest_on_held_out_rows(rows, gaussian, confidence) -> None:
    fit, held, head = rows(30), rows(300, 1), gaussian(confidence)
    losses = {tau: nll(head, inverses(head, fit, tau * unit(head)), held) for tau in PRECISIONS}
    tried, chosen = select(head, fit, held, config(precision="auto"))
    assert [c.value for c in tried] == list(PRECISIONS)
    for candidate in tried:
        assert candidate.nll == pytest.approx(losses[candidate.value], rel=1e-4)
    assert chosen.value == min(losses, key=lambda tau: cost(losses[tau], tau, 300))
    assert chosen.temperature == 1.0
    expected = inverses(head, fit, chosen.value * unit(head))
    factor = head.factor.double()
    rounding = 1e-6 * float(expected.abs().max())  # little precision, badly conditioned
    torch.testing.assert_close(factor @ factor.mT, expected, rtol=1e-4, atol=rounding)


def test_over_confident_means_want_a_wider_posterior(rows, gaussian) -> None:
    fit, held = rows(30), rows(300, 1)
    chosen = [
        select(gaussian(confidence), fit, held, config(precision="auto"))[1].value
        for confidence in (1.0, 4.0)
    ]
    assert chosen[1] < chosen[0]


def test_the_scale_of_the_trained_posterior_is_chosen_likewise(rows, gaussian) -> None:
    fit, held, head = rows(30), rows(300, 1), gaussian(deviation=1.5)
    scale = head.log_scale.detach().exp()
    losses = {s: nll(head, torch.diag_embed((s * scale).double().square()), held) for s in SCALES}
    tried, chosen = select(head, fit, held, config(refresh="none", scale="auto"))
    assert {c.covariance for c in tried} == {"trained"}
    assert chosen.value == min(losses, key=lambda s: cost(losses[s], s**-2, 300)) < 1
    torch.testing.assert_close(head.log_scale.exp(), chosen.value * scale)


def test_auto_keeps_the_trained_posterior_only_where_it_is_clearly_better(rows, gaussian) -> None:
    fit = rows(30)
    # A mean four times too sure: the trained posterior makes up for it, a tight refresh does not.
    options = {"refresh": "auto", "precision": 1e4}
    for count, expected in ((400, "trained"), (2, "refreshed")):
        head = gaussian(4.0, deviation=1.2)
        before = {k: v.clone() for k, v in head.state_dict().items()}
        tried, chosen = select(head, fit, rows(count, 1), config(**options))
        assert len(tried) == 2
        assert chosen.covariance == expected
        if expected == "trained":
            assert all(torch.equal(before[k], v) for k, v in head.state_dict().items())
    # At equal likelihood the refresh is taken, for it knows more about the directions of the data.
    head = gaussian(1.0, deviation=0.01)
    _, chosen = select(head, fit, rows(400, 1), config(**options))
    assert chosen.covariance == "refreshed" and head.family == "dense"
    # A given mode leaves no choice.
    _, chosen = select(
        gaussian(4.0, deviation=1.2), fit, rows(400, 1), config(**{**options, "refresh": "block"})
    )
    assert chosen.covariance == "refreshed"


def test_every_candidate_is_judged_at_its_own_temperature(rows, gaussian) -> None:
    fit, held, head = rows(30), rows(200, 1), gaussian(4.0)
    spreads = {tau: inverses(head, fit, tau * unit(head)) for tau in (0.1, 300.0)}
    tried, _ = select(head, fit, held, config(precision="auto", temperature="auto"))
    by_value = {c.value: c for c in tried}
    for tau, spread in spreads.items():
        candidate = by_value[tau]
        assert candidate.nll == pytest.approx(nll(head, spread, held, candidate.temperature), 1e-4)
    # Four times too sure: what the variance does not take up, the temperature does.
    assert by_value[300.0].temperature > by_value[0.1].temperature > 1
    assert by_value[300.0].temperature > 2.5


# the whole finaliser ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"refresh": "block"}, {"refresh": "diagonal"}, {"refresh": "none"}]
)
def test_finalizing_folds_the_temperature_into_what_was_chosen(rows, gaussian, options) -> None:
    fit, held = rows(50), rows(80, 1)
    head, copy = gaussian(3.0), gaussian(3.0)
    done, report = parts.finalize(
        head, fit, held, Recipe(finalize=config(**options, temperature=1.8))
    )
    select(copy, fit, held, config(**options, temperature=1.8))
    with torch.no_grad():
        expected = predictive_at(*copy.moments(held.phi), 1.8)
    found = parts.predict(done, held.phi, PredictConfig())
    torch.testing.assert_close(found.probs, expected.probs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.epistemic, expected.epistemic, rtol=1e-3, atol=1e-6)
    assert done is head and report["temperature"] == 1.8
    assert report["family"] == ("dense" if options["refresh"] == "block" else "diagonal")
    nll_after = -found.probs.gather(1, held.labels[:, None]).log().mean()
    assert report["nll"] == pytest.approx(float(nll_after), rel=1e-4)


@pytest.mark.parametrize("refresh", ["block", "diagonal"])
def test_a_refreshed_point_estimate_is_a_gaussian_around_the_same_mean(
    rows, gaussian, refresh
) -> None:
    fit, mean = rows(50), gaussian().weight.detach().clone()
    point = LinearHead(in_features=6, num_classes=4, rows=mean)
    done, report = parts.finalize(point, fit, None, Recipe(finalize=config(refresh=refresh)))
    assert isinstance(done, GaussianHead)
    assert torch.equal(done.weight, mean)
    assert not done.prior_mean.any()
    energy = float(fit.phi.square().sum(1).mean())
    assert float(done.feature_energy) == pytest.approx(energy)
    assert unit(done) == pytest.approx(energy / (2 * math.log(4)), rel=1e-5)
    expected = inverses(done, fit, unit(done))
    if refresh == "block":
        factor = done.factor.double()
        torch.testing.assert_close(factor @ factor.mT, expected, rtol=1e-4, atol=1e-7)
    assert bool((parts.predict(done, fit.phi, PredictConfig()).epistemic > 0).all())
    assert report["covariance"] == "refreshed" and report["nll"] is None
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    "opened", [{"precision": "auto"}, {"temperature": "auto"}, {"refresh": "auto"}]
)
def test_a_choice_needs_held_out_rows(rows, gaussian, opened) -> None:
    (key,) = opened
    with pytest.raises(ConfigError, match=rf"^finalize.{key}=auto .*chosen on held-out rows, and"):
        select(gaussian(), rows(20), None, config(**opened))


@pytest.mark.parametrize("predict", [PredictConfig("probit"), PredictConfig("sample", samples=2)])
def test_the_posterior_is_chosen_under_the_predictive_that_is_delivered(
    rows, gaussian, predict
) -> None:
    fit, held = rows(50), rows(80, 1)
    recipe = Recipe(
        finalize=config(scale="auto", precision="auto", refresh="auto", temperature="auto"),
        predict=predict,
    )
    done, report = parts.finalize(gaussian(3.0), fit, held, recipe)
    probs = parts.predict(done, held.phi, predict).probs
    delivered = -probs.double().gather(1, held.labels[:, None]).log().mean()
    assert report["nll"] == pytest.approx(float(delivered), rel=1e-4)
    same = {
        c["value"]: c["nll"] for c in report["tried"] if c["covariance"] == report["covariance"]
    }
    power = 1 if report["covariance"] == "refreshed" else -2
    assert report["value"] == min(same, key=lambda x: cost(same[x], x**power, 80))
    _, usual = parts.finalize(gaussian(3.0), fit, held, Recipe(finalize=recipe.finalize))
    assert report["temperature"] != pytest.approx(usual["temperature"], rel=1e-3)


def test_choosing_reports_every_candidate(rows, gaussian) -> None:
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Advance]:
        counts: list[int] = []
        yield lambda count=1, note="": counts.append(count)
        seen.append((label, total, sum(counts)))

    recipe = Recipe(finalize=config(scale="auto", refresh="none"))
    parts.finalize(gaussian(), rows(50), rows(80, 1), recipe, progress)
    assert seen == [("choosing the covariance", len(SCALES), len(SCALES))]


def test_the_prior_of_a_refreshed_point_estimate_is_the_recipes(rows, gaussian) -> None:
    fit, mean = rows(50), gaussian().weight.detach().clone()
    units = []
    for scale in (1.0, 4.0):
        point = LinearHead(in_features=6, num_classes=4, rows=mean)
        recipe = Recipe(finalize=config(), head=HeadConfig(prior_scale=scale))
        done, _ = parts.finalize(point, fit, None, recipe)
        units.append(unit(done))
    assert units[0] == pytest.approx(4 * units[1])
