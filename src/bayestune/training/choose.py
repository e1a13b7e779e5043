"""Choosing the KL weight κ by held-out likelihood.

The candidates are trained in turn for the first half of the run, each on the whole schedule, and
the chosen one goes on: it is then, bit by bit, the run at this κ. A trial on a schedule cut short
would favour a small κ, which fits faster and overfits later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayestune.config import PredictConfig, TrainConfig
from bayestune.finalize import (
    KAPPAS,
    Features,
    clearly_worse,
    fit_std_factor,
    item_nll,
    regression_losses,
    regression_predictive,
    search_temperature,
)
from bayestune.head import GaussianHead, LinearHead
from bayestune.methods import Method, at_mean
from bayestune.model import BayesModel


def candidates(model: BayesModel) -> tuple[float, ...]:
    """Return the κ that a model's recipe leaves to try; one where it is fixed or there is no KL."""
    if model.head.point and not model.backbone.has_kl:
        return (0.0,)
    given = model.recipe.train.kl
    return KAPPAS if isinstance(given, str) else (float(given),)


def epochs_of(config: TrainConfig, rows: int) -> int:
    """Return how many epochs a training on some rows spans; one that is cut short counts."""
    steps = math.ceil(rows / config.batch_size)
    return math.ceil(config.max_steps / steps) if config.max_steps else config.epochs


def steps_of(config: TrainConfig, rows: int) -> int:
    """Return how many batches a training on some rows has."""
    return config.max_steps or config.epochs * math.ceil(rows / config.batch_size)


def race_epochs(epochs: int) -> int:
    """Return after how many of its epochs a candidate is compared with the others."""
    return max(1, epochs // 2)


def largest(losses: Mapping[float, Tensor]) -> float:
    """Return the largest κ that is not worse than the likeliest by over one standard error.

    The error is that of the paired difference. Half a run shows how much faster a small κ fits, and
    not yet all that it overfits; and κ = 1, the ELBO itself, needs no reason.

    Args:
        losses: held-out negative log-likelihoods ``(N,)`` of the same rows by κ.
    """
    best = min(losses, key=lambda kappa: float(losses[kappa].mean()))
    return max(kappa for kappa in losses if not clearly_worse(losses[kappa], losses[best]))


def delivered_losses(
    method: Method, head: nn.Module, rows: Features, predict: PredictConfig, *, tempered: bool
) -> Tensor:
    """Return the held-out losses that stand for what will be delivered, in nats ``(N,)``.

    Where covariance and temperature are still to be chosen, the mean at its best temperature is
    what they cannot make worse, and costs no sampling.

    Args:
        method: predicts.
        head: the head as trained so far.
        rows: held-out features.
        predict: how logits become probabilities.
        tempered: whether a temperature will be fitted afterwards.
    """
    if isinstance(head, GaussianHead | LinearHead) and head.noise is not None:
        predictive = regression_predictive(head, rows.phi)
        factor = fit_std_factor(predictive, rows)[0] if tempered else 1.0
        return regression_losses(predictive, rows, factor)
    if not tempered:
        probs = method.predict(head, rows.phi, predict, rows.mask).probs  # pyright: ignore
        return item_nll(probs, rows.labels)
    with torch.no_grad():
        mean = at_mean(head, rows.phi, rows.mask)
        temperature, _ = search_temperature(lambda t: mean(t).probs, rows.labels)
        return item_nll(mean(temperature).probs, rows.labels)
