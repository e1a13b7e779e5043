"""One temperature, fitted by the likelihood of held-out labels."""

from __future__ import annotations

import math

from torch import Tensor

from bayestune.posterior.predictive import Predictive

#: Standard deviation of the prior on ln T: a handful of held-out rows cannot drive T to extremes,
#: a few hundred leave it where the likelihood wants it.
PRIOR_SD = 0.5
#: Temperatures searched, 1/16 to 16, and the steps of the two passes over their logarithm.
_RANGE = (-4.0, 4.0)
_COARSE = 9
_FINE = 12


def predictive_at(
    mu: Tensor, var: Tensor | None, temperature: float, mask: Tensor | None = None
) -> Predictive:
    """Return the predictive of logits divided by T, ``E softmax(z / T)``.

    Args:
        mu: logit means ``(N, K)``.
        var: logit variances ``(N, K)``; None for a point method.
        temperature: T.
        mask: which classes exist ``(N, K)``.
    """
    if var is None:
        return Predictive.from_point(mu / temperature, mask)
    return Predictive.from_moments(mu / temperature, var / temperature**2, mask=mask)


def item_nll(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood of each row in nats ``(N,)``, in float64."""
    picked = probs.cpu().double().gather(1, labels.cpu()[:, None]).flatten()  # (N,)
    return -picked.clamp_min(1e-300).log()


def held_out_nll(probs: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood in nats, accumulated in float64."""
    return float(item_nll(probs, labels).mean())


def fit_temperature(
    mu: Tensor, var: Tensor | None, labels: Tensor, mask: Tensor | None = None
) -> tuple[float, float]:
    """Find the temperature T that minimises the penalised held-out negative log-likelihood.

        T = argmin  Σ_n −log p_T(y_n | x_n) + (ln T)² / (2 · 0.5²)

    A grid over log₂ T finds the basin, golden sections narrow it to about one per cent. The
    predictive is deterministic, so the likelihood is a smooth function of T.

    Args:
        mu: logit means of held-out rows ``(N, K)``.
        var: their variances ``(N, K)``; None for a point method.
        labels: ``(N,)``.
        mask: which classes exist ``(N, K)``.

    Returns:
        T and the mean negative log-likelihood there, in nats.

    Source: Guo et al. 2017, section 4.2, for the point case without the prior.
    """

    def nll(log2: float) -> float:
        return held_out_nll(predictive_at(mu, var, 2.0**log2, mask).probs, labels)

    def loss(log2: float) -> float:
        return nll(log2) + (log2 * math.log(2)) ** 2 / (2 * PRIOR_SD**2 * len(labels))

    low, high = _RANGE
    step = (high - low) / (_COARSE - 1)
    grid = [low + i * step for i in range(_COARSE)]
    values = [loss(x) for x in grid]
    best = min(range(_COARSE), key=values.__getitem__)
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, _COARSE - 1)]
    golden = (math.sqrt(5) - 1) / 2
    c, d = b - golden * (b - a), a + golden * (b - a)
    loss_c, loss_d = loss(c), loss(d)
    for _ in range(_FINE):
        if loss_c <= loss_d:
            b, d, loss_d = d, c, loss_c
            c = b - golden * (b - a)
            loss_c = loss(c)
        else:
            a, c, loss_c = c, d, loss_d
            d = a + golden * (b - a)
            loss_d = loss(d)
    x, _ = min((c, loss_c), (d, loss_d), (grid[best], values[best]), key=lambda p: p[1])
    return 2.0**x, nll(x)
