"""Gaussian over the last layer with one full covariance per class.

    q(W) = Π_k N(w_k; m_k, L_k L_kᵀ)

``factor`` holds the L_k (K, D, D). Any invertible square factor of the covariance will do: a lower
Cholesky factor, the inverse transpose of one of the precision, or scaled eigenvectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.posterior.normals import drawn_normals


def logit_moments(phi: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the logits z_k = w_kᵀφ under q.

        μ_k = m_kᵀφ,   v_k = ‖L_kᵀφ‖²

    Args:
        phi: features, ``(..., D)``.
        mean: posterior means, ``(K, D)``.
        factor: covariance factors, ``(K, D, D)``.

    Returns:
        Logit means and variances, each ``(..., K)``.
    """
    # One class at a time: a (B, K, D) tensor would not fit for many classes.
    var = torch.stack([(phi @ L).square().sum(-1) for L in factor], dim=-1)  # (..., K)
    return phi @ mean.T, var


def kl(mean: Tensor, factor: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(q ‖ p) against p(W) = Π_kd N(prior_mean_kd, prior_variance), summed over classes.

        KL = ½ Σ_kd [ ((L_kL_kᵀ)_dd + (m − m₀)²)/σ₀² − 1 + log σ₀² ] − Σ_k log|det L_k|

    Args:
        mean: posterior means, ``(K, D)``.
        factor: covariance factors, ``(K, D, D)``.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.
        prior_variance: prior variance σ₀², a scalar, ``(K, 1)`` or ``(K, D)``.

    Returns:
        The divergence in nats, a scalar.
    """
    spread = (marginal_scale(factor).square() + (mean - prior_mean).square()) / prior_variance
    log_determinant = torch.linalg.slogdet(factor).logabsdet.sum()
    return 0.5 * (spread - 1 + torch.log(prior_variance)).sum() - log_determinant


def prior_variance(mean: Tensor, factor: Tensor, prior_mean: Tensor) -> Tensor:
    """Return the one shared σ₀² that minimises the KL, hence maximises the ELBO.

        σ₀² = (1/KD) Σ_k [ tr(L_kL_kᵀ) + ‖m_k − m₀_k‖² ]

    Args:
        mean: posterior means, ``(K, D)``.
        factor: covariance factors, ``(K, D, D)``.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.

    Returns:
        The variance, a scalar.
    """
    return (marginal_scale(factor).square() + (mean - prior_mean).square()).mean()


def sample(
    mean: Tensor, factor: Tensor, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weight matrices with rows w_k = m_k + L_k ε by reparametrisation.

    Args:
        mean: posterior means, ``(K, D)``.
        factor: covariance factors, ``(K, D, D)``.
        samples: how many draws S.
        generator: source of randomness, on the device of ``mean``.

    Returns:
        Draws, ``(S, K, D)``.
    """
    noise = drawn_normals((samples, *mean.shape), mean, generator)
    return mean + torch.einsum("kij,skj->ski", factor, noise)  # (S, K, D)


def marginal_scale(factor: Tensor) -> Tensor:
    """Return the standard deviation of every single weight, √diag(L_k L_kᵀ), ``(K, D)``."""
    return torch.linalg.vector_norm(factor, dim=-1)
