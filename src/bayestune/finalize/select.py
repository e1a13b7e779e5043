"""Choosing the posterior that is delivered, by the likelihood of held-out labels.

Every option is judged at its own temperature. All work on cached features; the backbone is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig, PredictConfig
from bayestune.errors import ConfigError
from bayestune.finalize.features import Features
from bayestune.finalize.options import Kind, Option, grid, options
from bayestune.finalize.refresh import Head
from bayestune.finalize.temperature import (
    clearly_worse,
    item_nll,
    predictive_at,
    search_temperature,
)
from bayestune.head import OrdinalHead
from bayestune.progress import Progress, silent


@dataclass(frozen=True)
class Candidate:
    """One posterior that was tried.

    Attributes:
        covariance: ``trained``, ``refreshed`` or ``ascended``, see `finalize.options`.
        value: the factor on the trained standard deviations, the precision of the refresh in units
            of the prior's, or the weight of the KL.
        temperature: fitted (or given) T.
        nll: held-out negative log-likelihood at T, in nats per row; None without held-out rows.
        log_evidence: log marginal likelihood of the training labels in nats, where the mean is the
            mode; None elsewhere.
        excess: for class blocks of two classes, the variance of the logits' difference relative to
            that under the whole curvature; None elsewhere.
    """

    covariance: Kind
    value: float
    temperature: float
    nll: float | None
    log_evidence: float | None = None
    excess: float | None = None


@torch.no_grad()
def select(
    head: Head,
    fit: Features,
    held_out: Features | None,
    config: FinalizeConfig,
    predict: PredictConfig | None = None,
    progress: Progress = silent,
    *,
    kl: float | str = "auto",
) -> tuple[list[Candidate], Candidate]:
    """Give the head the likeliest of the posteriors that the recipe allows.

        min over options of  Σ_n −log p(y_n | x_n) + (ln τ/τ₀)² / (2 · (ln 10)²)

    where τ/τ₀ is the precision in units of the prior's, or 1/s² for a factor s on the trained
    standard deviations. With ``refresh="auto"`` the best refreshed (or ascended) posterior is taken
    unless the best trained one is more likely by over one standard error of the paired difference:
    at equal likelihood the refresh tells unfamiliar inputs better. The temperature is returned, not
    folded in.

    Args:
        head: changed in place.
        fit: training features.
        held_out: rows the choice is made on; None where nothing is left to choose.
        config: which options, and what is fixed.
        predict: how the logits of the delivered model become probabilities.
        progress: how to report.
        kl: the recipe's weight of the KL, for ``refit="ascent"``.

    Returns:
        All candidates, and the one taken.

    Raises:
        ConfigError: if something is to be chosen and nothing is held out.
    """
    values = grid(config, kl)
    if held_out is None:
        require_held_out(config, kl)
    phi = fit.phi[:0] if held_out is None else held_out.phi
    temperature = 1.0 if isinstance(config.temperature, str) else float(config.temperature)
    tried: list[Candidate] = []
    best: dict[bool, tuple[float, Candidate, Option, Tensor]] = {}
    with progress("choosing the covariance", len(values)) as advance:
        for option in options(head, fit, phi, config, values):
            loss = torch.zeros(0)
            if held_out is not None:
                probs = partial(_probs, head, option, held_out, predict)
                if config.temperature == "auto":
                    # The neighbour's temperature is near: half the evaluations from there.
                    temperature, _ = search_temperature(probs, held_out.labels, temperature)
                loss = item_nll(probs(temperature), held_out.labels)
            nll = None if held_out is None else float(loss.mean())
            candidate = Candidate(
                option.kind, option.value, temperature, nll, option.log_evidence, option.excess
            )
            tried.append(candidate)
            cost = float(loss.sum()) + option.cost
            trained = option.kind == "trained"
            if trained not in best or cost < best[trained][0]:
                best[trained] = (cost, candidate, option, loss)
            advance(1)
        advance(len(values) - len(tried))  # the evidence chooses among many and shows one
    _, chosen, option, _ = _preferred(best)
    option.install(head)
    return tried, chosen


def has_choices(config: FinalizeConfig, kl: float | str = "auto") -> bool:
    """Return whether a recipe leaves something about a Gaussian head to held-out rows."""
    kinds = [kind for kind, _ in grid(config, kl)]
    if config.precision == "evidence" and "refreshed" in kinds:
        kinds = [kind for kind in kinds if kind != "refreshed"] + ["refreshed"]
    return config.temperature == "auto" or len(kinds) > 1


def _probs(
    head: Head, option: Option, rows: Features, predict: PredictConfig | None, temperature: float
) -> Tensor:
    if isinstance(head, OrdinalHead):
        return head.at(option.mu, option.var, temperature).probs
    return predictive_at(option.mu, option.var, temperature, rows.mask, predict).probs


def require_held_out(config: FinalizeConfig, kl: float | str = "auto") -> None:
    """Raise ConfigError where a recipe leaves something to held-out rows and there are none."""
    if has_choices(config, kl):
        raise ConfigError(
            "finalize.precision, finalize.scale and finalize.temperature are chosen on held-out "
            "rows: give a validation set or train.hold_out above 0, or fix them."
        )


def _preferred(
    best: dict[bool, tuple[float, Candidate, Option, Tensor]],
) -> tuple[float, Candidate, Option, Tensor]:
    if len(best) == 1:
        return next(iter(best.values()))
    trained, other = best[True], best[False]
    return trained if clearly_worse(other[3], trained[3]) else other
