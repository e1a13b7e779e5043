"""Posteriors whose mean moves, and what chooses among them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bayestune.config import FinalizeConfig, PredictConfig, Recipe
from bayestune.errors import ConfigError
from bayestune.finalize import Features, open_choices, select
from bayestune.finalize.options import KAPPAS, PRECISIONS
from bayestune.finalize.refresh import excess, measure, own_curvature
from bayestune.head import GaussianHead, LinearHead
from bayestune.methods import parts
from bayestune.posterior import bounds, dense, laplace
from bayestune.posterior.curvature import block

FIXED: dict[str, Any] = {
    "refresh": "block",
    "refit": "mode",
    "precision": 1.0,
    "scale": 1.0,
    "temperature": "none",
}


def config(**changes: Any) -> FinalizeConfig:
    return FinalizeConfig(**{**FIXED, **changes})


def unit(head: GaussianHead) -> float:
    return math.exp(-float(head.log_prior_variance))


def log_posterior(weight: Tensor, fit: Features, tau: float) -> Tensor:
    logits = fit.phi.double() @ weight.T
    if fit.mask is not None:
        logits = logits.masked_fill(~fit.mask, -torch.inf)
    rows = logits.log_softmax(1).gather(1, fit.labels[:, None]).flatten()
    rows = rows if fit.weights is None else rows * fit.weights
    return rows.sum() - 0.5 * tau * weight.square().sum()


@pytest.mark.parametrize("refresh", ["block", "diagonal", "kronecker", "full"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_moves_to_the_mode_at_its_precision(rows, gaussian, masked, refresh) -> None:
    fit, head = rows(60, masked=masked, weighed=True), gaussian(3.0)
    _, chosen = select(head, fit, None, config(precision=0.3, refresh=refresh))
    weight = head.weight.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(log_posterior(weight, fit, 0.3 * unit(head)), weight)
    assert slope.norm() < 2e-3 * float(fit.phi.norm())
    form = measure(head, head.weight, fit, refresh)
    torch.testing.assert_close(
        head.moments(fit.phi)[1], form.variance(fit.phi, 0.3 * unit(head)), rtol=1e-3, atol=1e-6
    )
    assert chosen.covariance == "refreshed" and chosen.value == 0.3


@pytest.mark.parametrize("masked", [False, True])
def test_one_precision_needs_no_eigenvectors(rows, gaussian, masked, monkeypatch) -> None:
    fit, head = rows(60, masked=masked, weighed=True), gaussian(3.0)
    form = measure(head, head.weight, fit, "block")
    monkeypatch.setattr(laplace, "_eigh", None)
    select(head, fit, None, config(precision=0.3, refit="none"))
    torch.testing.assert_close(
        head.moments(fit.phi)[1], form.variance(fit.phi, 0.3 * unit(head)), rtol=1e-4, atol=1e-7
    )


def test_the_log_evidence_is_that_of_importance_sampling(rows, gaussian) -> None:
    fit, head = rows(60), gaussian()
    _, chosen = select(head, fit, None, config())
    tau, weight = unit(head), head.weight.detach().double()
    # log ∫ p(y|W) p(W) dW with the Laplace posterior under the full curvature as the proposal.
    form = measure(head, weight, Features(fit.phi.double(), fit.labels), "full")
    L = form.spread(tau)
    size = weight.numel()
    noise = torch.randn(20_000, size, generator=torch.Generator().manual_seed(0)).double()
    draws = (weight.flatten() + noise @ L.T).view(-1, *weight.shape)
    logits = torch.einsum("nd,skd->snk", fit.phi.double(), draws)
    labels = fit.labels.expand(len(draws), -1)[..., None]
    likelihood = logits.log_softmax(2).gather(2, labels).sum((1, 2))
    prior = 0.5 * size * math.log(tau) - 0.5 * tau * draws.square().sum((1, 2))
    proposal = -0.5 * noise.square().sum(1) - torch.linalg.slogdet(L).logabsdet
    truth = (likelihood + prior - proposal).logsumexp(0) - math.log(len(draws))
    full, _ = select(gaussian(), fit, None, config(refresh="full"))
    assert full[0].log_evidence == pytest.approx(float(truth), abs=0.6)
    # Class blocks leave out what couples the classes, and count too much of what the data say.
    assert chosen.log_evidence is not None and chosen.log_evidence < full[0].log_evidence


def test_the_evidence_chooses_without_held_out_rows(rows, gaussian) -> None:
    fit = rows(200)
    scan = {
        tau: select(gaussian(), fit, None, config(precision=tau))[1].log_evidence
        for tau in PRECISIONS
    }
    only = config(precision="evidence")
    assert not open_choices(only)
    tried, chosen = select(gaussian(), fit, None, only)
    assert tried == [chosen] and chosen.nll is None
    assert chosen.value == max(scan, key=lambda tau: scan[tau] or -math.inf)
    assert chosen.log_evidence == pytest.approx(scan[chosen.value], abs=0.05)
    assert PRECISIONS[0] < chosen.value < PRECISIONS[-1]
    head = gaussian()
    _, stays = select(head, fit, None, config(precision="evidence", refit="none"))
    assert stays.value == chosen.value and torch.equal(head.weight, gaussian().weight)


def test_the_evidence_wants_more_precision_where_labels_are_noise(rows, gaussian) -> None:
    fit = rows(200)
    shuffled = fit.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    noise = Features(fit.phi, shuffled)
    found = [
        select(gaussian(), f, None, config(precision="evidence"))[1].value for f in (fit, noise)
    ]
    assert found[1] > 3 * found[0]


@pytest.mark.parametrize("groups", ["class", "feature"])
def test_precisions_of_groups_have_more_evidence_than_one(rows, gaussian, groups) -> None:
    fit = rows(300)
    fit.phi[:, :3] *= 20  # features of two scales, and weights of as many
    only = config(precision="evidence")
    shared = select(gaussian(), fit, None, only)[1]
    head = gaussian()
    _, chosen = select(head, fit, None, replace(only, groups=groups))
    assert head.family == "dense" and chosen.log_evidence > shared.log_evidence + 0.3
    own = own_curvature(head, fit.phi @ head.weight.detach().T, fit)
    var = head.moments(fit.phi)[1]
    with torch.no_grad():  # the covariance is one of these curvatures and of some diagonal prior
        S = (head.factor @ head.factor.mT).double()
        rest = torch.linalg.inv(S) - block(fit.phi.double(), own.double())
        prior = rest.diagonal(dim1=1, dim2=2)
        assert (rest - torch.diag_embed(prior)).abs().max() < 1e-2 * prior.max()
    assert torch.isfinite(var).all() and (prior > 0).all()


@pytest.mark.parametrize("kappa", [1.0, 0.1])
@pytest.mark.parametrize("bound", ["jensen", "tilted"])
def test_ascent_ends_where_the_bound_of_the_training_is_stationary(
    rows, gaussian, bound, kappa
) -> None:
    fit, head = rows(60, masked=True, weighed=True), gaussian(3.0)
    head.likelihood = bound
    _, chosen = select(head, fit, None, config(refit="ascent"), kl=kappa)
    assert chosen.covariance == "ascended" and chosen.value == kappa and head.family == "dense"
    mean = head.weight.detach().double().requires_grad_()
    factor = head.factor.detach().double().requires_grad_()
    phi = fit.phi.double()
    mu, var = dense.logit_moments(phi, mean, factor)
    value = (fit.weights * getattr(bounds, bound)(mu, var, fit.labels, fit.mask)).sum()
    variance = head.log_prior_variance.double().exp()
    value = value - kappa * dense.kl(mean, factor, head.prior_mean.double(), variance)
    for slope, unit_of in zip(
        torch.autograd.grad(value, (mean, factor)), (1.0, float(variance**-0.5)), strict=True
    ):
        assert slope.abs().max() < 0.05 * unit_of


def test_ascent_tries_the_weights_of_the_kl_that_the_recipe_leaves_open(rows, gaussian) -> None:
    fit, held = rows(60), rows(200, 1)
    options = config(refit="ascent", refresh="auto", temperature="auto")
    tried, _ = select(gaussian(), fit, held, options)
    assert [(c.covariance, c.value) for c in tried] == [
        ("trained", 1.0),
        *(("ascended", kappa) for kappa in KAPPAS),
    ]
    tried, _ = select(gaussian(), fit, held, options, kl=0.3)
    assert [c.value for c in tried] == [1.0, 0.3]


def test_fewer_rows_than_features_refresh_in_their_span(rows, gaussian) -> None:
    fit, head = rows(4), gaussian()
    select(head, fit, None, config())
    assert head.family == "subspace" and head.basis.shape == (6, 4)
    wide = gaussian()
    select(
        wide,
        Features(fit.phi.repeat(2, 1), fit.labels.repeat(2), weights=torch.full((8,), 0.5)),
        None,
        config(),
    )
    assert wide.family == "dense"
    phi = rows(20, 2).phi
    torch.testing.assert_close(head.moments(phi)[1], wide.moments(phi)[1], rtol=1e-3, atol=1e-5)


def test_two_classes_report_what_the_blocks_leave_out() -> None:
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(80, 6, generator=g)
    fit = Features(phi, (phi[:, 0] + torch.randn(80, generator=g) > 0).long())
    contrast = torch.tensor([1.0, -1.0])
    for count in (80, 5):
        some = Features(fit.phi[:count], fit.labels[:count])
        head = GaussianHead(in_features=6, num_classes=2, feature_energy=6.0)
        _, chosen = select(head, some, None, config(precision=0.1))
        full = measure(head, head.weight, some, "full").variance(some.phi, 0.1 * unit(head))
        block = head.moments(some.phi)[1].detach().sum(1)
        expected = float(block.sum() / (contrast @ full @ contrast).sum())
        assert chosen.excess == pytest.approx(expected, rel=1e-3)
        assert 1.2 < chosen.excess <= 2
    assert excess(measure(head, torch.zeros(3, 6), fit, "block"), phi)(1.0) is None


@pytest.mark.parametrize("refresh", ["kronecker", "full"])
def test_coupled_classes_predict_by_their_covariance(rows, gaussian, refresh) -> None:
    fit, held = rows(50), rows(80, 1)
    recipe = Recipe(
        finalize=config(refresh=refresh, refit="none", temperature="auto", precision="auto")
    )
    done, report = parts.finalize(gaussian(3.0), fit, held, recipe)
    assert done.family == ("coupled" if refresh == "kronecker" else "joint")
    found = parts.predict(done, held.phi, recipe.predict)
    nll = -found.probs.gather(1, held.labels[:, None]).log().mean()
    assert report["nll"] == pytest.approx(float(nll), rel=1e-3)
    assert (found.epistemic > 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_covariances_of_the_logits_are_held_for_few_rows_at_once(
    rows, gaussian, monkeypatch, masked
) -> None:
    fit, held = rows(50), rows(80, 1, masked=masked)
    head, _ = parts.finalize(gaussian(3.0), fit, None, Recipe(finalize=config(refresh="full")))
    expected = parts.predict(head, held.phi, PredictConfig(), held.mask)
    moments, sizes = head.moments, []
    monkeypatch.setattr("bayestune.finalize.temperature.PAIRS", 30 * 4**2)
    monkeypatch.setattr(head, "moments", lambda h: sizes.append(len(h)) or moments(h))
    found = parts.predict(head, held.phi, PredictConfig(), held.mask)
    assert sizes == [30, 30, 20]
    torch.testing.assert_close(found.probs, expected.probs)
    torch.testing.assert_close(found.epistemic, expected.epistemic, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("refit", ["none", "mode"])
@pytest.mark.parametrize("refresh", ["kronecker", "full"])
def test_what_is_chosen_by_covariances_is_chosen_in_blocks_of_rows(
    rows, gaussian, monkeypatch, refresh, refit, masked
) -> None:
    fit, held = rows(50), rows(80, 1, masked=masked)
    options = config(refresh=refresh, refit=refit, temperature="auto", precision="auto")
    expected, _ = select(gaussian(3.0), fit, held, options)
    form = {"kronecker": laplace.Kronecker, "full": laplace.Full}[refresh]
    variance, sizes = form.variance, []

    def counted(self: Any, phi: Tensor, precision: Any) -> Tensor:
        sizes.append(len(phi))
        return variance(self, phi, precision)

    monkeypatch.setattr(form, "variance", counted)
    monkeypatch.setattr("bayestune.finalize.temperature.PAIRS", 30 * 4**2)
    found, _ = select(gaussian(3.0), fit, held, options)
    assert set(sizes) == {30, 20}
    for one, other in zip(expected, found, strict=True):
        assert one.temperature == pytest.approx(other.temperature, rel=0.01)
        assert one.nll == pytest.approx(other.nll, abs=1e-5)


def test_a_point_estimate_can_be_refitted(rows, gaussian) -> None:
    fit, held = rows(50), rows(80, 1)
    point = LinearHead(in_features=6, num_classes=4, rows=gaussian(3.0).weight.detach())
    recipe = Recipe(finalize=config(precision="auto", temperature="auto"))
    done, report = parts.finalize(point, fit, held, recipe)
    assert isinstance(done, GaussianHead) and not torch.equal(done.weight, point.weight)
    assert len(report["tried"]) == len(PRECISIONS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"refresh": "none"}, r"finalize.refit is 'mode'"),
        ({"refit": "ascent", "refresh": "full"}, r"classes are independent"),
        ({"groups": "class", "refresh": "eigen"}, r"dense class blocks"),
    ],
)
def test_options_that_contradict_each_other_are_errors(wrong, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**wrong)


@pytest.mark.parametrize("changes", [{"refit": "none"}, {"precision": 1.0}])
def test_precisions_of_groups_go_with_the_mode_of_the_evidence(rows, gaussian, changes) -> None:
    options = config(**{"precision": "evidence", "groups": "class", **changes})
    with pytest.raises(ConfigError, match=r"groups=class gives precisions to the mode"):
        select(gaussian(), rows(20), None, options)


def test_the_evidence_leaves_nothing_open_where_it_chooses_nothing() -> None:
    assert not open_choices(config(refresh="none", refit="none", precision="evidence"))
