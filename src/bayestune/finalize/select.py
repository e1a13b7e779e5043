"""Choosing the posterior that is delivered, by the likelihood of held-out labels.

Candidates are the trained covariance at several scales and the Laplace covariance at several
precisions, each at its own temperature. All work on cached features; the backbone is not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig, PredictConfig
from bayestune.errors import ConfigError
from bayestune.finalize.features import Features
from bayestune.finalize.laplace import Curvature, covariance_of, measure_curvature
from bayestune.finalize.temperature import (
    clearly_worse,
    fit_temperature,
    item_nll,
    predictive_at,
)
from bayestune.head import GaussianHead
from bayestune.progress import Progress, silent

#: Precisions of the refresh, in units of the prior's own precision 1/σ₀².
PRECISIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: Factors on the trained standard deviations.
SCALES = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)
#: Standard deviation of the prior on the logarithm of a precision, one decade: a handful of rows
#: held out cannot drive the choice to extremes, a few hundred leave it where they want it.
PRIOR_SD = math.log(10)


@dataclass(frozen=True)
class Candidate:
    """One posterior that was tried.

    Attributes:
        covariance: ``trained`` or ``refreshed``.
        value: the factor on the trained standard deviations, or the precision of the refresh in
            units of the prior's.
        temperature: fitted (or given) T.
        nll: held-out negative log-likelihood at T, in nats per row; None without held-out rows.
    """

    covariance: Literal["trained", "refreshed"]
    value: float
    temperature: float
    nll: float | None


def select(
    head: GaussianHead,
    fit: Features,
    held_out: Features | None,
    config: FinalizeConfig,
    predict: PredictConfig | None = None,
    progress: Progress = silent,
) -> tuple[list[Candidate], Candidate]:
    """Give the head the likeliest of the candidates that the recipe allows.

        min over candidates of  Σ_n −log p(y_n | x_n) + (ln τ/τ₀)² / (2 · (ln 10)²)

    where τ/τ₀ is the precision in units of the prior's, or 1/s² for a factor s on the trained
    standard deviations. With ``refresh="auto"`` the best refreshed covariance is taken unless the
    best trained one is more likely by over one standard error of the paired difference: at equal
    likelihood the refresh tells unfamiliar inputs better. The temperature is returned, not folded
    in.

    Args:
        head: changed in place.
        fit: training features.
        held_out: rows the choice is made on; None where nothing is left to choose.
        config: which candidates, and what is fixed.
        predict: how the logits of the delivered model become probabilities.
        progress: how to report.

    Returns:
        All candidates, and the one taken.

    Raises:
        ConfigError: if something is to be chosen and nothing is held out.
    """
    curvature = None
    if config.refresh != "none":
        curvature = measure_curvature(head, fit, covariance_of(config.refresh, head))
    unit = float(torch.exp(-head.log_prior_variance))
    choices = list(grid(config))
    if held_out is None:
        require_held_out(config)
        kind, value = choices[0]
        only = Candidate(kind, value, given(config.temperature), None)
        _install(head, curvature, only, unit)
        return [only], only
    with torch.no_grad():
        mu, trained = head.moments(held_out.phi)
    losses: dict[Candidate, Tensor] = {}
    temperature = given(config.temperature)
    rows = (held_out.labels, held_out.mask)
    with progress("choosing the covariance", len(choices)) as advance:
        for kind, value in choices:
            var = trained * value**2
            if kind == "refreshed" and curvature is not None:
                var = curvature.variance(held_out.phi, value * unit)
            if config.temperature == "auto":
                # The neighbour's temperature is near: half the evaluations from there.
                temperature, _ = fit_temperature(mu, var, *rows, config=predict, start=temperature)
            probs = predictive_at(mu, var, temperature, held_out.mask, predict).probs
            loss = item_nll(probs, held_out.labels)
            losses[Candidate(kind, value, temperature, float(loss.mean()))] = loss
            advance(1)
    chosen = best(losses)
    _install(head, curvature, chosen, unit)
    return list(losses), chosen


def has_choices(config: FinalizeConfig) -> bool:
    """Return whether a recipe leaves something about a Gaussian head to held-out rows."""
    return config.temperature == "auto" or len(list(grid(config))) > 1


def require_held_out(config: FinalizeConfig) -> None:
    """Raise ConfigError where a recipe leaves something to held-out rows and there are none."""
    if has_choices(config):
        raise ConfigError(
            "finalize.precision, finalize.scale and finalize.temperature are chosen on held-out "
            "rows: give a validation set or train.hold_out above 0, or fix them."
        )


def grid(config: FinalizeConfig) -> Iterator[tuple[Literal["trained", "refreshed"], float]]:
    """Yield the covariances that a recipe allows: their kind, and scale or precision."""
    if config.refresh in ("none", "auto"):
        for scale in SCALES if config.scale == "auto" else (float(config.scale),):
            yield "trained", scale
    if config.refresh != "none":
        for precision in PRECISIONS if config.precision == "auto" else (float(config.precision),):
            yield "refreshed", precision


def best(losses: dict[Candidate, Tensor]) -> Candidate:
    """Return the candidate to take, by the losses of the same rows ``(N,)``; see `select`."""

    def cost(candidate: Candidate) -> float:
        log_precision = math.log(candidate.value)
        if candidate.covariance == "trained":
            log_precision *= -2
        return float(losses[candidate].sum()) + (log_precision / PRIOR_SD) ** 2 / 2

    likeliest = {
        kind: min(of_kind, key=cost)
        for kind in ("trained", "refreshed")
        if (of_kind := [c for c in losses if c.covariance == kind])
    }
    if len(likeliest) == 1:
        return next(iter(likeliest.values()))
    refreshed, trained = likeliest["refreshed"], likeliest["trained"]
    return trained if clearly_worse(losses[refreshed], losses[trained]) else refreshed


def _install(
    head: GaussianHead, curvature: Curvature | None, chosen: Candidate, unit: float
) -> None:
    if chosen.covariance == "refreshed" and curvature is not None:
        curvature.install(head, chosen.value * unit)
    elif chosen.value != 1.0:
        head.scale_spread(chosen.value)


def given(temperature: float | str) -> float:
    """Return a recipe's temperature, 1 where it is not a number."""
    return 1.0 if isinstance(temperature, str) else float(temperature)
