"""Lower bounds on the expected log likelihood E_q[log softmax(z)_y] from logit moments.

The logits are independent Gaussians z_k ~ N(μ_k, v_k). Each bound returns one value per example, so
that the caller weighs, masks and averages.
"""

from __future__ import annotations

import torch
from torch import Tensor


def jensen(mu: Tensor, var: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the Jensen bound, closed form and without noise.

        E log softmax(z)_y ≥ μ_y − log Σ_k exp(μ_k + ½ v_k)

    It holds for correlated logits too and is tight as v → 0. Its slope in v is −½ softmax(μ + ½v),
    where to second order the true one is −½ p(1 − p): confident classes are over-penalised.

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        mask: which classes exist for a row, bool ``(B, K)``; the others are left out of the sum.

    Returns:
        The bound in nats, ``(B,)``.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599).
    """
    log_partition = torch.logsumexp(_present(mu + 0.5 * var, mask), dim=-1)
    return _at(mu, labels) - log_partition


def monte_carlo(
    mu: Tensor, var: Tensor, labels: Tensor, noise: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the reparametrised Monte Carlo estimate, unbiased for E log softmax(z)_y itself.

        (1/S) Σ_s log softmax(μ + √v ∘ ε_s)_y

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        noise: standard normal draws, ``(S, B, K)``, or ``(S, 1, K)`` to share them between rows.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        The estimate in nats, ``(B,)``.
    """
    # The root has an infinite slope at zero: below the floor the gradient is zero instead.
    std = var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()
    z = mu + std * noise  # (S, B, K)
    log_likelihood = _at(z, labels) - torch.logsumexp(_present(z, mask), dim=-1)  # (S, B)
    return log_likelihood.mean(0)


def _present(z: Tensor, mask: Tensor | None) -> Tensor:
    return z if mask is None else z.masked_fill(~mask, -torch.inf)


def _at(z: Tensor, labels: Tensor) -> Tensor:
    index = labels.unsqueeze(-1).expand(*z.shape[:-1], 1)
    return z.gather(-1, index).squeeze(-1)
