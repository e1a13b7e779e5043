"""From the hidden states of all tokens to one feature per text, by the attention mask alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def last(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the state of the last attended token, whichever side is padded.

    Args:
        hidden: final hidden states ``(B, T, D)``.
        attention_mask: ones where a token is ``(B, T)``.

    Returns:
        Features ``(B, D)``.
    """
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    index = (positions * attention_mask.to(positions.dtype)).argmax(dim=1)  # (B,)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]


def mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean state of the attended tokens, accumulated in fp32; shapes as in `last`."""
    weight = attention_mask.to(torch.float32).unsqueeze(-1)  # (B, T, 1)
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)


def cls(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the state of the first attended token; shapes as in `last`."""
    index = attention_mask.to(torch.int64).argmax(dim=1)  # (B,)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]


POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"last": last, "mean": mean, "cls": cls}
