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
    precision: float | Tensor,
) -> Tensor:
    """Return the Laplace approximation of the log marginal likelihood of the training labels.

        log p(D) ≈ log p(D | W*) − ½ [ log det(G + τI) − log det τI + Σ_kd τ (w* − m)²_kd ]

    Args:
        log_likelihood: Σ_n log p(y_n | W*), summed over the training set.
        mean: the mode W*, ``(K, D)``.
        prior_mean: prior mean M, broadcastable to ``(K, D)``.
        eigenvalues: the KD eigenvalues of G; for one τ in any shape, for one per class ``(K, D)``.
        precision: prior precision τ, a scalar or ``(K, 1)``.

    Returns:
        Log evidence in nats, a scalar.

    Source: MacKay, The evidence framework applied to classification networks (1992).
    """
    # log det(G + τI) − log det τI, without the cancellation of the two.
    log_occam = torch.log1p(eigenvalues / precision).sum()
    return log_likelihood - 0.5 * (log_occam + (precision * (mean - prior_mean).square()).sum())


def updated_precision(
    mean: Tensor, prior_mean: Tensor, eigenvalues: Tensor, precision: float | Tensor
) -> Tensor:
    """Return the precision that one fixed-point step of the evidence gives.

        τ ← γ / ‖w* − m‖²,   γ = Σ_d λ_d / (λ_d + τ)

    γ counts the weights that the data determine. At the fixed point the evidence is stationary in
    τ, curvature and mode held. A precision ``(K, 1)`` is updated class by class.

    Args:
        mean: the mode W*, ``(K, D)``.
        prior_mean: prior mean M, broadcastable to ``(K, D)``.
        eigenvalues: eigenvalues of G; for one τ in any shape, for one per class ``(K, D)``.
        precision: prior precision τ, a scalar or ``(K, 1)``.

    Returns:
        The precision, a scalar or ``(K, 1)`` as it was given.

    Source: MacKay, Bayesian interpolation (1992), equation 32.
    """
    tau = torch.as_tensor(precision, dtype=mean.dtype, device=mean.device)
    determined = eigenvalues / (eigenvalues + tau)
    distance = (mean - prior_mean).square()
    if tau.ndim:
        return determined.sum(1, keepdim=True) / distance.sum(1, keepdim=True)
    return determined.sum() / distance.sum()
