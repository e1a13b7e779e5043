"""Ordered classes as intervals of one Gaussian score: the cumulative logit model.

    P(y ≤ k | f) = σ(b_k − f),   f ~ N(μ, v),   b_1 < … < b_{K−1}

The average over f is one-dimensional, so that likelihood, probabilities and entropies are exact by
quadrature: nothing is bounded and nothing is drawn.

Source: McCullagh, Regression models for ordinal data (1980), section 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

#: Where the outermost classes end: sigmoids are zero or one there, and differences stay finite.
_END = 1e9
#: Standard deviations beyond which a Gaussian is ignored, and the largest step of the score. The
#: integrands have no singularity within π of the real axis: trapezoids err by about exp(−2π²/step).
_REACH = 8.0
_STEP = 0.75
#: Probabilities (B, Q, K) handled at once.
_ELEMENTS = 2**20


def log_probs(score: Tensor, cuts: Tensor) -> Tensor:
    """Return log P(y = k | f) for all classes, exact however small.

        σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b − a})

    Args:
        score: scores f, of any shape ``(...)``.
        cuts: ascending cut points, ``(K − 1,)``.

    Returns:
        Nats, ``(..., K)``.
    """
    low, high = _ends(cuts)
    f = score.unsqueeze(-1)
    return logsigmoid(high - f) + logsigmoid(f - low) + _log_width(low, high)


def expected_log_likelihood(mu: Tensor, var: Tensor, labels: Tensor, cuts: Tensor) -> Tensor:
    """Return E log P(y | f) for f ~ N(μ, v), the likelihood term of the evidence lower bound.

    Args:
        mu: means of the score, ``(B,)``.
        var: variances of the score, ``(B,)``.
        labels: class indices, ``(B,)``.
        cuts: ascending cut points, ``(K − 1,)``.

    Returns:
        Nats, ``(B,)``.
    """
    low, high = (end[labels].unsqueeze(-1) for end in _ends(cuts))  # (B, 1)
    f, weights = _nodes(mu, var)
    log_p = logsigmoid(high - f) + logsigmoid(f - low) + _log_width(low, high)  # (B, Q)
    return log_p @ weights


def expected_probs(mu: Tensor, var: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Return E P(y = k | f) and E H(y | f) for f ~ N(μ, v).

    Args:
        mu: means of the score, ``(B,)``.
        var: variances of the score, ``(B,)``.
        cuts: ascending cut points, ``(K − 1,)``.

    Returns:
        Probabilities ``(B, K)`` and expected entropies in nats ``(B,)``.
    """
    probs, entropy = [mu.new_zeros(0, len(cuts) + 1)], [mu.new_zeros(0)]
    f, weights = _nodes(mu, var)
    for part in f.split(max(1, _ELEMENTS // (f.shape[1] * (len(cuts) + 1)))):
        log_p = log_probs(part, cuts)  # (B, Q, K)
        p = log_p.exp()
        probs.append(torch.einsum("bqk,q->bk", p, weights))
        entropy.append(-(p * log_p).sum(-1) @ weights)
    return torch.cat(probs), torch.cat(entropy)


def curvature(score: Tensor, labels: Tensor, cuts: Tensor) -> Tensor:
    """Return −d²/df² log P(y | f) = σ'(b_y − f) + σ'(b_{y−1} − f), positive, ``(B,)``.

    Args:
        score: scores f, ``(B,)``.
        labels: class indices, ``(B,)``.
        cuts: ascending cut points, ``(K − 1,)``.
    """
    low, high = (end[labels] for end in _ends(cuts))
    above, below = (high - score).sigmoid(), (low - score).sigmoid()
    return above * (1 - above) + below * (1 - below)


def start_cuts(counts: Tensor) -> Tensor:
    """Return the cut points at which a score of 0 predicts the classes' shares, ``(K − 1,)``.

        b_k = logit( (n_1 + … + n_k + k/2) / (N + K/2) )

    Args:
        counts: rows of each class, ``(K,)``; half a row more keeps empty classes open.
    """
    share = (counts + 0.5).cumsum(0) / (counts + 0.5).sum()
    return torch.logit(share[:-1])


def _ends(cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Return lower and upper end of every class, each ``(K,)``."""
    end = cuts.new_full((1,), _END)
    return torch.cat([-end, cuts]), torch.cat([cuts, end])


def _log_width(low: Tensor, high: Tensor) -> Tensor:
    return torch.log(-torch.expm1(low - high))


def _nodes(mu: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores ``(B, Q)`` and weights ``(Q,)`` that average over N(μ, v)."""
    std = var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()
    widest = float(std.detach().max()) if len(std) else 0.0
    count = 2 * math.ceil(max(_REACH * widest / _STEP, 12.0)) + 1
    t = torch.linspace(-_REACH, _REACH, count, dtype=mu.dtype, device=mu.device)
    weights = (-0.5 * t.square()).softmax(0)  # the normal density, of sum one on these nodes
    return mu.unsqueeze(-1) + std.unsqueeze(-1) * t, weights
