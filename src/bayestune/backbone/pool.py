"""From the hidden states of all tokens to one feature per text, by the attention mask alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def last_token(attention_mask: Tensor) -> Tensor:
    """Return where the last attended token stands ``(B,)``, by the mask ``(B, T)``."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions * attention_mask.to(positions.dtype)).argmax(dim=1)


def first_token(attention_mask: Tensor) -> Tensor:
    """Return where the first attended token stands ``(B,)``, by the mask ``(B, T)``."""
    return attention_mask.to(torch.int64).argmax(dim=1)


def pick(hidden: Tensor, index: Tensor) -> Tensor:
    """Return one token's state of each text ``(B, D)``, of states ``(B, T, D)`` at ``(B,)``."""
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def last(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the state of the last attended token, whichever side is padded.

    Args:
        hidden: final hidden states ``(B, T, D)``.
        attention_mask: ones where a token is ``(B, T)``.

    Returns:
        Features ``(B, D)``.
    """
    return pick(hidden, last_token(attention_mask))


def mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean state of the attended tokens, accumulated in fp32; shapes as in `last`."""
    weight = attention_mask.to(torch.float32).unsqueeze(-1)  # (B, T, 1)
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)


def cls(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the state of the first attended token; shapes as in `last`."""
    return pick(hidden, first_token(attention_mask))


POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"last": last, "mean": mean, "cls": cls}
#: The token that a pooling reads, where it is one.
POOLED: dict[str, Callable[[Tensor], Tensor]] = {"last": last_token, "cls": first_token}
