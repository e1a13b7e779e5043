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
from bayestune.finalize.features import Features
from bayestune.finalize.line import minimise
from bayestune.finalize.select import Candidate, best, given, grid, require_held_out
from bayestune.finalize.temperature import best_temperature
from bayestune.head import GaussianHead, LinearHead, Noise
from bayestune.metrics import regression_nll
from bayestune.posterior.conjugate import LinearRegression
from bayestune.posterior.regression import RegressionPredictive
from bayestune.progress import Progress, silent

#: Binary logarithms of σ in which the evidence is searched, first step and last one.
_RANGE, _STEP, _FINE = (-16.0, 4.0), 0.5, 0.005


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
    refit = None if config.refresh == "none" else _Refit(head, noise, fit, config.refresh)
    choices = list(grid(config))
    if held_out is None:
        require_held_out(config)
        only = Candidate(*choices[0], given(config.temperature), None)
        _install(head, refit, only)
        return [only], only
    with torch.no_grad():
        mu, var = head.moments(held_out.phi)
        noise_var = noise.variance(held_out.phi)
    losses: dict[Candidate, Tensor] = {}
    temperature = given(config.temperature)
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
            losses[Candidate(kind, value, temperature, float(loss.mean()))] = loss
            advance(1)
    chosen = best(losses)
    _install(head, refit, chosen)
    return list(losses), chosen


class _Refit:
    """The exact posterior of the last layer at every prior precision, in units of the prior's.

    What the noise knows about single rows is taken from the trained posterior.
    """

    def __init__(self, head: GaussianHead, noise: Noise, fit: Features, refresh: str) -> None:
        self.head, self.noise, self.diagonal = head, noise, refresh == "diagonal"
        self.unit = float(torch.exp(-head.log_prior_variance))
        self.trained = float(noise.log_scale.detach().exp())
        with torch.no_grad():
            mu, var = head.moments(fit.phi)
            weights = noise.row_weights(fit.phi, mu, var, fit.labels)
        self.rows = LinearRegression.of(fit.phi, fit.labels[:, 0], weights[:, 0])
        self._sigma: dict[float, float] = {}

    def sigma(self, value: float) -> float:
        """Return the scale of the noise of maximum evidence at a precision."""
        if value not in self._sigma:
            found: dict[float, float] = {}

            def loss(log2: float) -> float:
                if log2 not in found:
                    evidence = self.rows.log_evidence(2.0**log2, value * self.unit)
                    found[log2] = -float(evidence) / self.rows.count
                return found[log2]

            start = math.log2(self.trained)
            self._sigma[value] = 2.0 ** minimise(loss, start, _STEP, _FINE, _RANGE)
        return self._sigma[value]

    def moments(self, value: float) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviations (in the basis) at a precision, each ``(D,)``."""
        given = self.sigma(value), value * self.unit
        form = self.rows.diagonal_scale if self.diagonal else self.rows.scale
        return self.rows.mean(*given), form(*given)

    def predictive(self, phi: Tensor, value: float) -> RegressionPredictive:
        """Return the predictive of features ``(B, D)`` at a precision."""
        mean, scale = self.moments(value)
        rows = phi.double()
        turned = rows if self.diagonal else rows @ self.rows.basis
        mu, var = rows @ mean[:, None], turned.square() @ scale.square()[:, None]  # (B, 1)
        with torch.no_grad():
            noise = self.noise.variance(phi).double() * (self.sigma(value) / self.trained) ** 2
        return RegressionPredictive.from_moments(mu, var, noise, self.noise.dof)

    @torch.no_grad()
    def install(self, value: float) -> None:
        """Give the head mean, covariance and noise at a precision."""
        mean, scale = self.moments(value)
        self.head.weight.copy_(mean[None])
        if self.diagonal:
            self.head.set_spread("diagonal", log_scale=scale.log()[None])
        else:
            self.head.set_spread("eigen", log_scale=scale.log()[None], basis=self.rows.basis)
        self.noise.log_scale.fill_(math.log(self.sigma(value)))


def _noise(head: GaussianHead | LinearHead) -> Noise:
    if head.noise is None:
        raise ConfigError("The head has no noise; it predicts classes, not numbers.")
    return head.noise


def _point(head: LinearHead, held_out: Features | None, config: FinalizeConfig) -> Candidate:
    if config.temperature != "auto":
        return Candidate("trained", 1.0, given(config.temperature), None)
    if held_out is None:
        raise ConfigError(
            "finalize.temperature=auto is fitted on held-out rows: give a validation set or "
            "train.hold_out above 0, or fix it."
        )
    temperature, nll = fit_std_factor(regression_predictive(head, held_out.phi), held_out)
    return Candidate("trained", 1.0, temperature, nll)


def _install(head: GaussianHead, refit: _Refit | None, chosen: Candidate) -> None:
    if chosen.covariance == "refreshed" and refit is not None:
        refit.install(chosen.value)
    elif chosen.value != 1.0:
        head.scale_spread(chosen.value)
