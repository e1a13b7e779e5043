"""Terms that make a point classifier less confident, beside its likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayestune.config import TrainConfig
from bayestune.errors import ConfigError
from bayestune.finalize import Features
from bayestune.head import LinearHead


def require_point(config: TrainConfig, head: nn.Module) -> None:
    """Refuse these terms where the likelihood is not a softmax of logits without variance.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("label_smoothing", "entropy_bonus"):
        if getattr(config, key) and (not isinstance(head, LinearHead) or head.noise is not None):
            what = "numbers" if getattr(head, "noise", None) is not None else "a random head"
            raise ConfigError(
                f"train.{key} is about the softmax of a point head, and this is {what}; use "
                "head.kind=linear for classes, or leave it at 0."
            )


def confidence(logits: Tensor, batch: Features, smoothing: float, bonus: float) -> Tensor:
    """Return what is added to the mean NLL of a batch, in nats.

        α (mean_k −log p_k + log p_y) − β H(p),   H(p) = −Σ_k p_k log p_k

    With the first term the NLL is the cross entropy to labels of which a share α is spread evenly
    over the classes that exist.

    Args:
        logits: ``(B, K)``.
        batch: labels, which classes exist, and weights of the examples.
        smoothing: α.
        bonus: β.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7; Pereyra et al. 2017 (arXiv
    1701.06548), eq. 2.
    """
    mask = torch.ones_like(logits, dtype=torch.bool) if batch.mask is None else batch.mask
    logp = logits.masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, 0)  # (B, K)
    entropy = -(logp.exp() * mask * logp).sum(-1)
    at_label = logp.gather(1, batch.labels[:, None]).squeeze(1)
    spread = at_label - logp.sum(-1) / mask.sum(-1)
    each = smoothing * spread - bonus * entropy  # (B,)
    return (each if batch.weights is None else batch.weights * each).mean()
