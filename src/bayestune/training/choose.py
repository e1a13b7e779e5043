"""Choosing the KL weight κ by held-out likelihood, from short runs on the cached states."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bayestune.config import PredictConfig
from bayestune.finalize import Features, fit_temperature, item_nll, predictive_at
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
    held_out: Callable[[], Tensor],
    model: BayesModel,
    progress: Progress,
) -> tuple[float, dict[float, float]]:
    """Return the recipe's κ, or the one that short runs speak for on held-out rows; see `largest`.

    Every candidate starts from the same state and takes the whole rate schedule in a third of the
    epochs (rounded down, at least one); the state is put back afterwards.

    Args:
        new_loop: makes a loop for a κ and a number of epochs.
        held_out: the held-out negative log-likelihoods ``(N,)`` of the model as it is.
        model: the model at its starting point.
        progress: how to report.

    Returns:
        κ, and the mean held-out NLL of each candidate that was tried.
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
    losses: dict[float, Tensor] = {}
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
    return largest(losses), {kappa: float(loss.mean()) for kappa, loss in losses.items()}


def largest(losses: Mapping[float, Tensor]) -> float:
    """Return the largest κ that is not worse than the likeliest by over one standard error.

    The error is that of the paired difference. A short run shows how much faster a small κ fits,
    and not yet that it overfits; and κ = 1, the ELBO itself, needs no reason.

    Args:
        losses: held-out negative log-likelihoods ``(N,)`` of the same rows by κ.
    """
    best = min(losses, key=lambda kappa: float(losses[kappa].mean()))

    def good(kappa: float) -> bool:
        excess = losses[kappa] - losses[best]  # (N,)
        error = float(excess.std()) / len(excess) ** 0.5 if len(excess) > 1 else 0.0
        return float(excess.mean()) <= error

    return max(kappa for kappa in losses if good(kappa))


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
    if not tempered:
        return item_nll(method.predict(head, rows.phi, predict, rows.mask).probs, rows.labels)
    with torch.no_grad():
        mu, _ = head.moments(rows.phi)  # pyright: ignore[reportCallIssue]
    temperature, _ = fit_temperature(mu, None, rows.labels, rows.mask)
    return item_nll(predictive_at(mu, None, temperature, rows.mask).probs, rows.labels)
