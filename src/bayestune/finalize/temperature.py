"""One temperature, fitted by the likelihood of held-out labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized

from torch import Tensor

from bayestune.config import FinalizeConfig, PredictConfig
from bayestune.errors import ConfigError
from bayestune.finalize.line import minimise
from bayestune.posterior.observed import LogitDraws, LogitMoments
from bayestune.posterior.predictive import Predictive

#: Pairs of classes (N, K, K) in the covariances that are held at once.
PAIRS = 2**24
#: Standard deviation of the prior on ln T: a handful of held-out rows cannot drive T to extremes,
#: a few hundred leave it where the likelihood wants it.
PRIOR_SD = 0.5
#: Temperatures searched, 1/16 to 16, by their binary logarithm; first step and last one.
_RANGE = (-4.0, 4.0)
_STEP = 0.5
_FINE = 0.01


def given_temperature(config: FinalizeConfig) -> float:
    """Return the temperature that a recipe fixes; 1 where it is fitted or there is none."""
    return 1.0 if isinstance(config.temperature, str) else float(config.temperature)


def require_rows(config: FinalizeConfig, held_out: Sized | None) -> None:
    """Raise ConfigError where a temperature is to be fitted and nothing is held out."""
    if config.temperature == "auto" and held_out is None:
        raise ConfigError(
            "finalize.temperature=auto is fitted on held-out rows: give a validation set or "
            "train.hold_out above 0, or fix it."
        )


def rows_at_once(num_classes: int) -> int:
    """Return of how many rows the covariances ``(N, K, K)`` of the logits are held at once."""
    return max(1, PAIRS // num_classes**2)


def predictive_at(
    mu: Tensor,
    var: Tensor | None,
    temperature: float,
    mask: Tensor | None = None,
    config: PredictConfig | None = None,
) -> Predictive:
    """Return the predictive of logits divided by T, ``E softmax(z / T)``.

    Args:
        mu: logit means ``(N, K)``.
        var: logit variances ``(N, K)`` or covariances ``(N, K, K)``; None for a point method.
        temperature: T.
        mask: which classes exist ``(N, K)``.
        config: how logits become probabilities; the recipe's default where absent.
    """
    if var is None:
        return Predictive.from_point(mu / temperature, mask)
    config = config or PredictConfig()
    samples = None if config.samples == "auto" else int(config.samples)
    return Predictive.from_moments(
        mu / temperature,
        var / temperature**2,
        method=config.predictive,
        samples=samples,
        mask=mask,
    )


def observed_at(
    observed: LogitDraws | LogitMoments,
    temperature: float,
    mask: Tensor | None = None,
    config: PredictConfig | None = None,
) -> Predictive:
    """Return the predictive of random adapter weights with all logits divided by T.

    Args:
        observed: what they say of N rows.
        temperature: T.
        mask: which classes exist ``(N, K)``.
        config: how moments become probabilities; the recipe's default where absent.
    """
    if isinstance(observed, LogitDraws):
        return Predictive.from_samples(observed.logits / temperature, mask)
    return predictive_at(observed.mean, observed.covariance, temperature, mask, config)


def item_nll(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood of each row in nats ``(N,)``, in float64."""
    return nll_of(probs.cpu().gather(1, labels.cpu()[:, None]).flatten())


def nll_of(picked: Tensor) -> Tensor:
    """Return the negative logarithm of the labels' probabilities ``(N,)`` in nats, in float64."""
    return -picked.cpu().double().clamp_min(1e-300).log()


def clearly_worse(losses: Tensor, than: Tensor) -> bool:
    """Return whether losses exceed others by over one standard error of the paired difference.

    Args:
        losses: losses of N rows ``(N,)``.
        than: losses of the same rows ``(N,)``.
    """
    excess = losses - than  # (N,)
    error = float(excess.std()) / len(excess) ** 0.5 if len(excess) > 1 else 0.0
    return float(excess.mean()) > error


def held_out_nll(probs: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood in nats, accumulated in float64."""
    return float(item_nll(probs, labels).mean())


def fit_temperature(
    mu: Tensor,
    var: Tensor | None,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    config: PredictConfig | None = None,
    start: float = 1.0,
) -> tuple[float, float]:
    """Find the temperature T that minimises the penalised held-out negative log-likelihood.

        T = argmin  Σ_n −log p_T(y_n | x_n) + (ln T)² / (2 · 0.5²)

    The predictive is deterministic, so this is a smooth function of ln T: steps downhill bracket
    its minimum, parabolas through the bracket narrow it to about one per cent.

    Args:
        mu: logit means of held-out rows ``(N, K)``.
        var: their variances ``(N, K)`` or covariances ``(N, K, K)``; None for a point method.
        labels: ``(N,)``.
        mask: which classes exist ``(N, K)``.
        config: how logits become probabilities; the recipe's default where absent.
        start: where to begin; near the answer it saves evaluations.

    Returns:
        T and the mean negative log-likelihood there, in nats.

    Source: Guo et al. 2017, section 4.2, for the point case without the prior.
    """

    def probs(temperature: float) -> Tensor:
        return predictive_at(mu, var, temperature, mask, config).probs

    return search_temperature(probs, labels, start)


def search_temperature(
    probs: Callable[[float], Tensor], labels: Tensor, start: float = 1.0
) -> tuple[float, float]:
    """Find the temperature of `fit_temperature` for any probabilities ``(N, K)`` that depend on it.

    Args:
        probs: probabilities at a temperature.
        labels: ``(N,)``.
        start: where to begin.

    Returns:
        T and the mean negative log-likelihood there, in nats.
    """

    def nll(temperature: float) -> float:
        return held_out_nll(probs(temperature), labels)

    return best_temperature(nll, len(labels), start)


def best_temperature(
    nll: Callable[[float], float], rows: int, start: float = 1.0
) -> tuple[float, float]:
    """Return the T of the least mean loss plus (ln T)² / (2 · 0.5² · rows), and the loss there.

    Args:
        nll: the mean loss of held-out rows at a temperature, in nats.
        rows: how many there are.
        start: where to begin.
    """
    found: dict[float, float] = {}

    def loss(log2: float) -> float:
        if log2 not in found:
            found[log2] = nll(2.0**log2)
        return found[log2] + (log2 * math.log(2)) ** 2 / (2 * PRIOR_SD**2 * rows)

    x = minimise(loss, math.log2(start), _STEP, _FINE, _RANGE)
    return 2.0**x, found[x]
