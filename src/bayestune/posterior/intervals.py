"""Credible intervals of class probabilities: where the posterior puts them, class by class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.posterior.logits import present, variances
from bayestune.posterior.normals import fixed_normals
from bayestune.posterior.sampling import lower_factor

#: Draws behind a quantile; its standard error in probability mass is √(q(1−q)/S), 0.7 % at 5 %.
SAMPLES = 1024
_NUMBERS = 2**22  # draws held at once


def from_moments(
    mu: Tensor, var: Tensor, level: float, mask: Tensor | None = None, samples: int = SAMPLES
) -> Tensor:
    """Return equal-tailed intervals of softmax(z)_k for z ~ N(μ, Σ).

        P(softmax(z)_k < lower_k) = P(softmax(z)_k > upper_k) = (1 − level)/2

    By the fixed draws of `normals.fixed_normals`, so that a row's intervals depend on nothing else.

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances ``(B, K)`` or covariances ``(B, K, K)``.
        level: mass of the posterior inside, in (0, 1).
        mask: which classes exist for a row, bool ``(B, K)``; the others have [0, 0].
        samples: draws S.

    Returns:
        Lower and upper ends, ``(2, B, K)``.
    """
    K = mu.shape[1]
    normals = fixed_normals(K, samples, 0, mu.dtype, mu.device)  # (K, S)
    out = []
    for m, v, exists in _blocks(mu, var, mask, samples):
        if v.ndim == 3 and exists is not None:
            both = exists.unsqueeze(-1) & exists.unsqueeze(-2)
            v = torch.where(both, v, torch.eye(K, dtype=v.dtype, device=v.device))
        noise = (  # (b, K, S)
            lower_factor(v) @ normals
            if v.ndim == 3
            else variances(v).clamp_min(0).sqrt().unsqueeze(-1) * normals
        )
        z = present(m, exists).unsqueeze(-1) + noise
        out.append(quantiles(z.softmax(1).movedim(-1, 0), level))
    return torch.cat(out, dim=1) if out else mu.new_empty(2, 0, K)


def from_samples(logits: Tensor, level: float, mask: Tensor | None = None) -> Tensor:
    """Return the intervals of S draws of the logits ``(S, B, K)``; see `from_moments`.

    With few draws they are coarse: between S equally likely values quantiles are interpolated.
    """
    exists = None if mask is None else mask.unsqueeze(0)
    return quantiles(present(logits, exists).softmax(-1), level)


def quantiles(probs: Tensor, level: float) -> Tensor:
    """Return equal-tailed quantiles over draws.

    Args:
        probs: probabilities ``(S, ...)``.
        level: mass inside, in (0, 1).

    Returns:
        ``(2, ...)``.

    Raises:
        ConfigError: if the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level = {level!r} given, expected a number above 0 and below 1.")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=probs.dtype).to(probs.device)
    ordered = probs.sort(dim=0).values  # quantile() of torch holds 16 M numbers at most
    place = tails * (len(probs) - 1)
    below = place.floor().long()
    above = (below + 1).clamp_max(len(probs) - 1)
    share = (place - below).view(2, *[1] * (probs.ndim - 1))
    return ordered[below].lerp(ordered[above], share.expand_as(ordered[below]))


def _blocks(mu: Tensor, var: Tensor, mask: Tensor | None, samples: int) -> Iterator[tuple]:
    rows = max(1, _NUMBERS // max(1, mu.shape[1] * samples))
    masks = [None] * -(-len(mu) // rows) if mask is None else mask.split(rows)
    return zip(mu.split(rows), var.split(rows), masks, strict=False)
