"""Where the posterior puts the probability of each class, for every method that has one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayestune.config import PredictConfig
from bayestune.finalize import rows_at_once
from bayestune.head import GaussianHead, OrdinalHead
from bayestune.posterior import intervals as of
from bayestune.posterior import ordinal
from bayestune.posterior.normals import fixed_normals
from bayestune.posterior.observed import LogitDraws, LogitMoments, Observed


@torch.no_grad()
def intervals(
    head: nn.Module,
    observed: Observed,
    config: PredictConfig,
    level: float = 0.9,
    mask: Tensor | None = None,
) -> Tensor | None:
    """Return equal-tailed credible intervals of class probabilities.

    Args:
        head: the head.
        observed: what `BayesModel.observe` returned, of B texts.
        config: how the model predicts; with ``samples=0`` nothing varies.
        level: mass of the posterior inside.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        Lower and upper ends ``(2, B, K)``, or None where the probabilities do not vary: a point, a
        posterior's mean; and for generative heads, whose classes are not independent of the text
        that is read.

    Raises:
        ConfigError: if the level is not in (0, 1).
    """
    if isinstance(observed, LogitDraws):
        return of.from_samples(observed.logits, level, mask)
    if isinstance(observed, LogitMoments):
        return of.from_moments(observed.mean, observed.covariance, level, mask)
    if config.samples == 0:
        return None
    if isinstance(head, OrdinalHead) and not head.point:
        mu, var = head.moments(observed)  # (B, 1)
        normals = fixed_normals(1, of.SAMPLES, 0, mu.dtype, mu.device)  # (1, S)
        scores = mu + var.sqrt() * normals  # (B, S)
        return of.quantiles(ordinal.log_probs(scores.T, head.cuts).exp(), level)
    if not isinstance(head, GaussianHead) or head.noise is not None:
        return None
    size = rows_at_once(head.num_classes) if head.correlated else max(1, len(observed))
    masks = [None] * -(-len(observed) // size) if mask is None else mask.split(size)
    parts = [
        of.from_moments(*head.moments(rows), level, exists)
        for rows, exists in zip(observed.split(size), masks, strict=True)
    ]
    return torch.cat(parts, dim=1)
