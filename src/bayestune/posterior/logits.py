"""What every predictive asks of Gaussian logits, be they independent or correlated."""

from __future__ import annotations

import torch
from torch import Tensor

# Stands for −∞ in a logit: exp gives exactly 0, and 0 times it is 0 and not NaN.
ABSENT = -1e30


def present(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return logits with the absent classes at −1e30; mask bool ``(B, K)`` or None for all."""
    return logits if mask is None else logits.masked_fill(~mask, ABSENT)


def variances(var: Tensor) -> Tensor:
    """Return the variances ``(B, K)`` of such, or of covariances ``(B, K, K)``."""
    return var if var.ndim == 2 else var.diagonal(dim1=-2, dim2=-1)


def contrast_variances(var: Tensor, weights: Tensor) -> Tensor:
    """Return how far each logit varies against a mean of all, blind to a shift common to all.

        Var(z_k − Σ_j w_j z_j) = Σ_kk − 2 (Σw)_k + wᵀΣw,   Σ_j w_j = 1

    Args:
        var: logit variances ``(B, K)`` or covariances ``(B, K, K)``.
        weights: w, ``(B, K)``.

    Returns:
        Variances, ``(B, K)``.
    """
    product = var * weights if var.ndim == 2 else torch.einsum("bkj,bj->bk", var, weights)
    total = (weights * product).sum(-1, keepdim=True)
    return (variances(var) - 2 * product + total).clamp_min(0)
