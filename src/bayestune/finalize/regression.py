"""Finishing a posterior over numbers: given the features it is a Bayesian linear regression.

Where classes get a Laplace covariance around the trained mean, a number gets its exact posterior,
mean included, at a noise of maximum evidence; where classes get a temperature, a number gets one
factor on its predictive standard deviations. Both are chosen as `finalize.choice` has it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig
from bayestune.errors import ConfigError
from bayestune.finalize.checks import require_numbers
from bayestune.finalize.choice import Candidate, Choice, Kind, choose
from bayestune.finalize.features import Features
from bayestune.finalize.options import grid, precision_cost
from bayestune.finalize.refit import Refit
from bayestune.finalize.select import require_held_out
from bayestune.finalize.temperature import best_temperature, given_temperature, require_rows
from bayestune.head import GaussianHead, LinearHead, Noise
from bayestune.metrics import regression_nll
from bayestune.posterior.observed import LogitDraws, LogitMoments, Observed
from bayestune.posterior.regression import RegressionPredictive
from bayestune.progress import Progress, silent


def regression_predictive(
    head: GaussianHead | LinearHead, phi: Observed, *, at_mean: bool = False
) -> RegressionPredictive:
    """Return the predictive of what was observed, in units of the targets' deviation.

    Args:
        head: predicts numbers.
        phi: features ``(B, D)``, or what random adapter weights say of the numbers; the noise is
            that at their mean.
        at_mean: of the posterior's mean alone, without epistemic variance.

    Raises:
        ConfigError: the head predicts classes.
    """
    noise = _noise(head)
    with torch.no_grad():
        if isinstance(phi, LogitDraws):
            mu, var, phi = phi.logits.mean(0), phi.logits.var(0, correction=0), phi.phi
        elif isinstance(phi, LogitMoments):
            mu, var, phi = phi.mean, phi.covariance[..., 0], phi.phi
        else:
            mu, var = head.moments(phi)
        if at_mean:
            var = torch.zeros_like(var)
        return RegressionPredictive.from_moments(mu, var, noise.variance(phi), noise.dof)


def regression_losses(
    predictive: RegressionPredictive, rows: Features, temperature: float = 1.0
) -> Tensor:
    """Return the negative log density of each row in nats, in the user's unit, float64 ``(N,)``.

    Args:
        predictive: of the rows, in units of the targets' deviation.
        rows: with their numbers.
        temperature: factor on the standard deviations.
    """
    y, std = rows.labels.flatten(), predictive.std * temperature
    return regression_nll(predictive.mean, std, y, predictive.dof) + math.log(rows.unit)


def fit_std_factor(
    predictive: RegressionPredictive, rows: Features, start: float = 1.0
) -> tuple[float, float]:
    """Find the factor T on standard deviations of the least penalised held-out loss.

        T = argmin  Σ_n −log p_T(y_n | x_n) + (ln T)² / (2 · 0.5²)

    Returns:
        T and the mean loss there, in nats.
    """

    def nll(factor: float) -> float:
        return float(regression_losses(predictive, rows, factor).mean())

    return best_temperature(nll, len(rows), start)


def finish_regression(
    head: GaussianHead | LinearHead,
    fit: Features,
    held_out: Features | None,
    config: FinalizeConfig,
    progress: Progress = silent,
) -> tuple[list[Candidate], Candidate]:
    """Fit the noise, and give a Gaussian head the likeliest of the posteriors allowed.

    Candidates are the trained covariance at several scales and the exact posterior at several prior
    precisions. The factor on the standard deviations is returned, not folded in.

    Args:
        head: changed in place; a point keeps its mean.
        fit: training features.
        held_out: rows the choice is made on; None where nothing is left to choose.
        config: which candidates, and what is fixed.
        progress: how to report.

    Returns:
        All candidates, and the one taken.

    Raises:
        ConfigError: if something is to be chosen and nothing is held out.
    """
    noise = _noise(head)
    with torch.no_grad():
        mu, var = head.moments(fit.phi)
        noise.fit_level(fit.phi, mu, var, fit.labels)
    if isinstance(head, LinearHead):
        point = _point(head, held_out, config)
        return [point], point
    refit = None if config.refresh == "none" else Refit(head, noise, fit, config.refresh)
    if held_out is None:
        require_held_out(config)
    values = _values(config, refit)
    rows = fit.first(0) if held_out is None else held_out
    choices = (_choice(head, refit, rows, kind, value) for kind, value in values)
    return choose(choices, len(values), len(rows), config, progress)


def _choice(
    head: GaussianHead, refit: Refit | None, rows: Features, kind: Kind, value: float
) -> Choice:
    @cache  # every temperature asks for it
    def predictive() -> RegressionPredictive:
        if kind == "refreshed" and refit is not None:
            return refit.predictive(rows.phi, value)
        noise = _noise(head)
        with torch.no_grad():
            mu, var = head.moments(rows.phi)
            noise_var = noise.variance(rows.phi)
        return RegressionPredictive.from_moments(mu, var * value**2, noise_var, noise.dof)

    def install() -> None:
        if kind == "refreshed" and refit is not None:
            refit.install(value)
        elif value != 1.0:
            head.scale_spread(value)

    def losses(temperature: float) -> Tensor:
        return regression_losses(predictive(), rows, temperature)

    cost = precision_cost(value**-2 if kind == "trained" else value)
    return Choice(kind, value, cost, losses, install, _evidence(refit, kind, value))


def _values(config: FinalizeConfig, refit: Refit | None) -> list[tuple[Kind, float]]:
    """Return kind and value of all posteriors that a recipe leaves open."""
    require_numbers(config)
    found = grid(config, 1.0)
    if config.precision == "evidence" and refit is not None:
        refreshed = [option for option in found if option[0] == "refreshed"]
        likeliest = max(refreshed, key=lambda option: refit.log_evidence(option[1]))
        return [option for option in found if option[0] == "trained"] + [likeliest]
    return found


def _evidence(refit: Refit | None, kind: Kind, value: float) -> float | None:
    return refit.log_evidence(value) if kind == "refreshed" and refit is not None else None


def _noise(head: GaussianHead | LinearHead) -> Noise:
    if head.noise is None:
        raise ConfigError("The head has no noise; it predicts classes, not numbers.")
    return head.noise


def _point(head: LinearHead, held_out: Features | None, config: FinalizeConfig) -> Candidate:
    require_rows(config, held_out)
    if config.temperature != "auto" or held_out is None:
        return Candidate("trained", 1.0, given_temperature(config), None)
    observed = held_out.phi if held_out.logits is None else held_out.logits
    predictive = regression_predictive(head, observed)

    def loss(factor: float) -> float:
        # Of a point's deviation only the noise is folded into the head.
        louder = replace(predictive, aleatoric=factor * predictive.aleatoric)
        return float(regression_losses(louder, held_out).mean())

    temperature, nll = best_temperature(loss, len(held_out))
    return Candidate("trained", 1.0, temperature, nll)
