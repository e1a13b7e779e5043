"""Ordered classes as intervals of one Gaussian score: the cumulative logit model.

    P(y ≤ k | f) = σ(b_k − f),   f ~ N(μ, v),   b_1 < … < b_{K−1}

The average over f is one-dimensional, so that likelihood, probabilities and entropies are exact by
quadrature: nothing is bounded and nothing is drawn. The model is one of logistic noise, y ≤ k where
f + ε < b_k: nodes of a narrow score lie along f, those of a wide one along ε,

    P(b < f + ε < b') = E_ε [ Φ((b' − ε − μ)/√v) − Φ((b − ε − μ)/√v) ]
    E log σ(b − f)    = −√v E_ε r((μ − b − ε)/√v),   r(u) = u Φ(u) + Φ'(u)

so that however wide it is they are few. All sums are of trapezoids, whose error falls exponentially
for such smooth integrands: in float64 it is below 1e-8, whatever v.

Source: McCullagh, Regression models for ordinal data (1980), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

#: Where the outermost classes end: sigmoids are zero or one there, and differences stay finite.
_END = 1e9
#: Standard deviations beyond which a Gaussian is ignored, and the largest step of the score. The
#: integrands have no singularity within π of the real axis: trapezoids err by about exp(−2π²/step).
_REACH = 8.0
_STEP = 0.75
#: Nodes on either side of the middle: of scores of two widths, and of the noise, which is ignored
#: beyond ±40: probabilities are relatively right down to e⁻⁴⁰.
_NARROW, _WIDE = 12, 54
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
    std = _deviations(var)
    expected = torch.empty_like(mu)
    for rows, nodes in _groups(std, 1):
        m, s = mu[rows].unsqueeze(-1), std[rows].unsqueeze(-1)  # (n, 1)
        if nodes is None:
            t, weights = _noise(mu)
            ramps = _ramp((m - high[rows] - t) / s) + _ramp((low[rows] - m - t) / s)  # (n, Q)
            expected[rows] = -s.squeeze(-1) * (ramps @ weights)
        else:
            t, weights = _normal(mu, nodes)
            f = m + s * t  # (n, Q)
            expected[rows] = (logsigmoid(high[rows] - f) + logsigmoid(f - low[rows])) @ weights
    return expected + _log_width(low, high).squeeze(-1)


def expected_likelihood(mu: Tensor, var: Tensor, labels: Tensor, cuts: Tensor) -> Tensor:
    """Return E P(y | f) for f ~ N(μ, v), the predictive probability of one class of each row.

    Args:
        mu: means of the score, ``(B,)``.
        var: variances of the score, ``(B,)``.
        labels: class indices, ``(B,)``.
        cuts: ascending cut points, ``(K − 1,)``.

    Returns:
        Probabilities, ``(B,)``.
    """
    low, high = (end[labels].unsqueeze(-1) for end in _ends(cuts))  # (B, 1)
    std, found = _deviations(var), torch.empty_like(mu)
    for rows, nodes in _groups(std, 1):
        given = mu[rows], std[rows], low[rows], high[rows]
        probs = _over_noise(*given) if nodes is None else _over_scores(*given, nodes)[0]
        found[rows] = probs.squeeze(-1)
    return found


def expected_probs(mu: Tensor, var: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Return E P(y = k | f) and E H(y | f) for f ~ N(μ, v).

    Args:
        mu: means of the score, ``(B,)``.
        var: variances of the score, ``(B,)``.
        cuts: ascending cut points, ``(K − 1,)``.

    Returns:
        Probabilities ``(B, K)`` and expected entropies in nats ``(B,)``.
    """
    low, high = _ends(cuts)
    std = _deviations(var)
    probs, entropy = mu.new_empty(len(mu), len(low)), torch.empty_like(mu)
    for rows, nodes in _groups(std, len(low)):
        given = mu[rows], std[rows], low, high
        if nodes is None:
            probs[rows] = _over_noise(*given)
            entropy[rows] = _near_cuts(mu[rows], std[rows], cuts)
            entropy[rows] -= probs[rows] @ _log_width(low, high)
        else:
            probs[rows], entropy[rows] = _over_scores(*given, nodes)
    return probs, entropy


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


def _deviations(var: Tensor) -> Tensor:
    return var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()


def _groups(std: Tensor, columns: int) -> Iterator[tuple[Tensor, int | None]]:
    """Yield indices of rows that are integrated alike, and how many nodes their scores take.

    A row's own deviation decides. There is no number where the nodes lie along the noise.

    Args:
        std: deviations of the score, ``(B,)``.
        columns: classes of a row, which with its nodes say how many rows are taken at once.
    """
    left = torch.ones_like(std, dtype=torch.bool)
    for nodes in (_NARROW, _WIDE, None):
        inside = left if nodes is None else left & (std <= nodes * _STEP / _REACH)
        left = left & ~inside
        most = max(1, _ELEMENTS // ((2 * (nodes or _WIDE) + 1) * columns))
        for rows in inside.nonzero().squeeze(-1).split(most):
            if len(rows):
                yield rows, nodes


def _normal(like: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights ``(Q,)`` that average over N(0, 1)."""
    t = torch.linspace(-_REACH, _REACH, 2 * nodes + 1, dtype=like.dtype, device=like.device)
    return t, (-0.5 * t.square()).softmax(0)  # the density, of sum one on these nodes


def _noise(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes and weights ``(Q,)`` that average over the logistic distribution."""
    t = _STEP * torch.arange(-_WIDE, _WIDE + 1, dtype=like.dtype, device=like.device)
    return t, (logsigmoid(t) + logsigmoid(-t)).softmax(0)


def _over_scores(
    mu: Tensor, std: Tensor, low: Tensor, high: Tensor, nodes: int
) -> tuple[Tensor, Tensor]:
    """Return probabilities ``(n, k)`` and entropies ``(n,)`` of classes with ends ``(…, k)``."""
    t, weights = _normal(mu, nodes)
    f = (mu.unsqueeze(-1) + std.unsqueeze(-1) * t).unsqueeze(-1)  # (n, Q, 1)
    low, high = low.unsqueeze(-2), high.unsqueeze(-2)
    log_p = logsigmoid(high - f) + logsigmoid(f - low) + _log_width(low, high)  # (n, Q, k)
    p = log_p.exp()
    return torch.einsum("nqk,q->nk", p, weights), -(p * log_p).sum(-1) @ weights


def _over_noise(mu: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return probabilities ``(n, k)`` of classes with ends ``(…, k)``."""
    t, weights = _noise(mu)
    m, s = mu.unsqueeze(-1), std[:, None, None]  # (n, 1), (n, 1, 1)
    below, above = (((end - m).unsqueeze(-1) - t) / s for end in (low, high))  # (n, k, Q)
    return _normal_between(below, above, (high - low).unsqueeze(-1) / s) @ weights


def _near_cuts(mu: Tensor, std: Tensor, cuts: Tensor) -> Tensor:
    """Return E[H(y | f) + Σ_k p_k log width_k] ``(n,)``: what is left is small far from all cuts.

    −Σ_j [ p_j log σ(b_j − f) + p_{j+1} log σ(f − b_j) ]
    """
    (low, high), (t, _) = _ends(cuts), _noise(cuts)
    f, width = cuts.unsqueeze(-1) + t, _log_width(low, high).unsqueeze(-1)  # (K − 1, Q), (K, 1)
    under, over = logsigmoid(-t), logsigmoid(t)
    below = (under + logsigmoid(f - low[:-1, None]) + width[:-1]).exp()
    above = (logsigmoid(high[1:, None] - f) + over + width[1:]).exp()
    d = (f - mu[:, None, None]) / std[:, None, None]  # (n, K − 1, Q)
    found = torch.einsum("njq,jq->n", _density(d), -(below * under + above * over))
    return _STEP * found / std


def _normal_between(low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    """Return Φ(high) − Φ(low), relatively right in the tails and where the two are close."""
    small, middle = width.clamp_max(0.01), (high + low) / 2
    thin = small * _density(middle) * (1 + small.square() * (middle.square() - 1) / 24)
    right = low > 0  # seen from the nearer side nothing cancels
    far, near = torch.where(right, low, -high), torch.where(right, high, -low)
    apart = 0.5 * (torch.erfc(far * 0.5**0.5) - torch.erfc(near * 0.5**0.5))
    return torch.where(width < 0.01, thin, apart)


def _ramp(u: Tensor) -> Tensor:
    """Return u Φ(u) + Φ'(u), the mean of max(0, u + N(0, 1))."""
    return u * torch.special.ndtr(u) + _density(u)


def _density(d: Tensor) -> Tensor:
    return (-0.5 * d.square()).exp() / math.sqrt(2 * math.pi)
