"""The marginal likelihood of the training labels, to choose prior precisions without held-out rows.

A Laplace approximation: exact where the log likelihood is quadratic in the weights. It is the
evidence only where the mean is the mode of the posterior at that precision; see `posterior.mode`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_evidence(
    log_likelihood: float | Tensor,
    mean: Tensor,
    prior_mean: Tensor,
    eigenvalues: Tensor,
    precision: float,
) -> Tensor:
    """Return the Laplace approximation of the log marginal likelihood of the training labels.

        log p(D) ≈ log p(D | W*) − ½ [ log det(G + τI) − log det τI + Σ_kd τ (w* − m)²_kd ]

    Args:
        log_likelihood: Σ_n log p(y_n | W*), summed over the training set.
        mean: the mode W*, ``(K, D)``.
        prior_mean: prior mean M, broadcastable to ``(K, D)``.
        eigenvalues: the KD eigenvalues of G, in any shape.
        precision: prior precision τ.

    Returns:
        Log evidence in nats, a scalar.

    Source: MacKay, The evidence framework applied to classification networks (1992).
    """
    # log det(G + τI) − log det τI, without the cancellation of the two.
    log_occam = torch.log1p(eigenvalues / precision).sum()
    return log_likelihood - 0.5 * (log_occam + (precision * (mean - prior_mean).square()).sum())


def updated_precision(
    mean: Tensor, prior_mean: Tensor, variance: Tensor, precision: Tensor, groups: Tensor
) -> Tensor:
    """Return the precisions that one fixed-point step of the evidence gives, one per group.

        τ_g ← γ_g / Σ_{kd ∈ g} (w* − m)²_kd,   γ_g = Σ_{kd ∈ g} (1 − τ_kd Var w_kd)

    γ counts the weights that the data determine. At the fixed point the evidence is stationary in
    every τ, curvature and mode held; where the data determine nothing there is none, and τ grows
    from step to step.

    Args:
        mean: the mode W*, ``(K, D)``.
        prior_mean: prior mean M, broadcastable to ``(K, D)``.
        variance: posterior variances of the single weights, ``(K, D)``.
        precision: prior precisions τ, ``(K, D)``, equal within a group.
        groups: index of the group of every weight, int64 ``(K, D)``.

    Returns:
        The precisions, ``(K, D)``.

    Source: MacKay, Bayesian interpolation (1992), equation 32; for groups, Tipping, Sparse Bayesian
    learning and the relevance vector machine (2001), equation 16.
    """
    count = int(groups.max()) + 1
    flat = groups.flatten()

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(count).index_add_(0, flat, x.flatten())

    distance = total((mean - prior_mean).square())
    determined = total((1 - precision * variance).clamp_min(torch.finfo(mean.dtype).eps))
    return (determined / distance)[groups]
