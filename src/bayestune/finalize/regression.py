"""Finishing a posterior over numbers: given the features it is a Bayesian linear regression.

Where classes get a Laplace covariance around the trained mean, a number gets its exact posterior,
mean included, at a noise of maximum evidence; where classes get a temperature, a number gets one
factor on its predictive standard deviations. Both are chosen as `finalize.select` chooses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig
from bayestune.errors import ConfigError
from bayestune.finalize.checks import require_numbers
from bayestune.finalize.features import Features
from bayestune.finalize.options import Kind, grid, precision_cost
from bayestune.finalize.refit import Refit
from bayestune.finalize.select import Candidate, require_held_out
from bayestune.finalize.temperature import best_temperature, clearly_worse
from bayestune.head import GaussianHead, LinearHead, Noise
from bayestune.metrics import regression_nll
from bayestune.posterior.regression import RegressionPredictive
from bayestune.progress import Progress, silent


def regression_predictive(head: GaussianHead | LinearHead, phi: Tensor) -> RegressionPredictive:
    """Return the predictive of features ``(B, D)``, in units of the targets' deviation.

    Raises:
        ConfigError: the head predicts classes.
    """
    noise = _noise(head)
    with torch.no_grad():
        mu, var = head.moments(phi)
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
    choices = _choices(config, refit)
    if held_out is None:
        require_held_out(config)
        only = Candidate(*choices[0], _given(config), None, _evidence(refit, *choices[0]))
        _install(head, refit, only)
        return [only], only
    with torch.no_grad():
        mu, var = head.moments(held_out.phi)
        noise_var = noise.variance(held_out.phi)
    losses: dict[Candidate, Tensor] = {}
    temperature = _given(config)
    with progress("choosing the covariance", len(choices)) as advance:
        for kind, value in choices:
            if kind == "refreshed" and refit is not None:
                predictive = refit.predictive(held_out.phi, value)
            else:
                moments = mu, var * value**2, noise_var
                predictive = RegressionPredictive.from_moments(*moments, noise.dof)
            if config.temperature == "auto":
                temperature, _ = fit_std_factor(predictive, held_out, temperature)
            loss = regression_losses(predictive, held_out, temperature)
            nll, evidence = float(loss.mean()), _evidence(refit, kind, value)
            losses[Candidate(kind, value, temperature, nll, evidence)] = loss
            advance(1)
    chosen = _best(losses)
    _install(head, refit, chosen)
    return list(losses), chosen


def _choices(config: FinalizeConfig, refit: Refit | None) -> list[tuple[Kind, float]]:
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


def _best(losses: dict[Candidate, Tensor]) -> Candidate:
    """Return the likeliest; the trained covariance only where the refreshed is clearly worse."""

    def cost(candidate: Candidate) -> float:
        trained = candidate.covariance == "trained"
        precision = candidate.value**-2 if trained else candidate.value
        return float(losses[candidate].sum()) + precision_cost(precision)

    refreshed = [c for c in losses if c.covariance == "refreshed"]
    trained = [c for c in losses if c.covariance == "trained"]
    if not (refreshed and trained):
        return min(losses, key=cost)
    best, other = min(refreshed, key=cost), min(trained, key=cost)
    return other if clearly_worse(losses[best], losses[other]) else best


def _given(config: FinalizeConfig) -> float:
    return 1.0 if isinstance(config.temperature, str) else float(config.temperature)


def _noise(head: GaussianHead | LinearHead) -> Noise:
    if head.noise is None:
        raise ConfigError("The head has no noise; it predicts classes, not numbers.")
    return head.noise


def _point(head: LinearHead, held_out: Features | None, config: FinalizeConfig) -> Candidate:
    if config.temperature != "auto":
        return Candidate("trained", 1.0, _given(config), None)
    if held_out is None:
        raise ConfigError(
            "finalize.temperature=auto is fitted on held-out rows: give a validation set or "
            "train.hold_out above 0, or fix it."
        )
    temperature, nll = fit_std_factor(regression_predictive(head, held_out.phi), held_out)
    return Candidate("trained", 1.0, temperature, nll)


def _install(head: GaussianHead, refit: Refit | None, chosen: Candidate) -> None:
    if chosen.covariance == "refreshed" and refit is not None:
        refit.install(chosen.value)
    elif chosen.value != 1.0:
        head.scale_spread(chosen.value)
