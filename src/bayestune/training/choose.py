"""Choosing the KL weight κ by held-out likelihood, from short runs on the cached states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bayestune.config import PredictConfig
from bayestune.finalize import Features, fit_temperature, held_out_nll
from bayestune.head import GaussianHead
from bayestune.methods import Method
from bayestune.model import BayesModel
from bayestune.progress import Progress
from bayestune.training.checkpoint import restore, rng_state, set_rng_state, trainable
from bayestune.training.loop import Loop

#: KL weights tried: the ELBO itself, and colder posteriors for easy or many-class tasks.
KAPPAS = (1.0, 0.3, 0.1)


def trial_epochs(epochs: int) -> int:
    """Return how many epochs a trial takes where the run takes ``epochs``."""
    return max(1, epochs // 3)


def choose_kappa(
    new_loop: Callable[[float, int], Loop],
    held_out: Callable[[], float],
    model: BayesModel,
    progress: Progress,
) -> tuple[float, dict[float, float]]:
    """Return the recipe's κ, or the one whose short run is likeliest on held-out rows.

    Every candidate starts from the same state and takes the whole rate schedule in a third of the
    epochs (rounded down, at least one); the state is put back afterwards.

    Args:
        new_loop: makes a loop for a κ and a number of epochs.
        held_out: the held-out NLL of the model as it is.
        model: the model at its starting point.
        progress: how to report.

    Returns:
        κ, and the held-out NLL of each candidate that was tried.
    """
    config = model.recipe.train
    if not isinstance(model.head, GaussianHead):
        return 0.0, {}
    if config.kl != "auto":
        return float(config.kl), {}
    start = trainable(model.backbone, model.head)
    device = model.backbone.device
    rng = rng_state(device)
    epochs = trial_epochs(config.epochs)
    losses: dict[float, float] = {}
    loops = {kappa: new_loop(kappa, epochs) for kappa in KAPPAS}
    examples = sum(len(loop.rows) * epochs for loop in loops.values())
    with progress("choosing the KL weight", examples) as advance:
        for kappa, loop in loops.items():
            set_rng_state(device, rng)
            for _ in range(epochs):
                loop.run_epoch(advance)
            losses[kappa] = held_out()
            restore(model.backbone, model.head, start)
    set_rng_state(device, rng)
    return min(losses, key=losses.__getitem__), losses


def delivered_nll(
    method: Method, head: nn.Module, rows: Features, predict: PredictConfig, *, tempered: bool
) -> float:
    """Return the held-out NLL that stands for what will be delivered, in nats per row.

    Where covariance and temperature are still to be chosen, the mean at its best temperature is
    what they cannot make worse, and costs no sampling.

    Args:
        method: predicts.
        head: the head as trained so far.
        rows: held-out features.
        predict: how logits become probabilities.
        tempered: whether a temperature will be fitted afterwards.
    """
    if tempered:
        with torch.no_grad():
            mu, _ = head.moments(rows.phi)  # pyright: ignore[reportCallIssue]
        return fit_temperature(mu, None, rows.labels, rows.mask)[1]
    return held_out_nll(method.predict(head, rows.phi, predict, rows.mask).probs, rows.labels)
