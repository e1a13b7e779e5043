"""Gaussian over the last layer with a diagonal plus a few shared directions per class.

    q(W) = Π_k N(w_k; m_k, diag(s_k²) + F_k F_kᵀ)

``scale`` holds the standard deviations s (K, D), as in the diagonal family, ``factor`` the F_k
(K, D, R) in the same units: without a factor the two families agree. R columns cost R times the
storage of the mean, and nothing is ever larger than B·K·R.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayestune.posterior.normals import drawn_normals


class Spread(NamedTuple):
    """Standard deviations ``(K, D)`` and factors ``(K, D, R)`` of all classes."""

    scale: Tensor
    factor: Tensor


def logit_moments(phi: Tensor, mean: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the logits z_k = w_kᵀφ under q.

        μ_k = m_kᵀφ,   v_k = Σ_d s_kd² φ_d² + ‖F_kᵀφ‖²

    Args:
        phi: features, ``(..., D)``.
        mean: posterior means, ``(K, D)``.
        spread: standard deviations and factors.

    Returns:
        Logit means and variances, each ``(..., K)``.
    """
    K, D, R = spread.factor.shape
    columns = spread.factor.permute(1, 0, 2).reshape(D, K * R)  # (D, K·R)
    along = (phi @ columns).unflatten(-1, (K, R))  # (..., K, R)
    var = phi.square() @ spread.scale.square().T + along.square().sum(-1)  # (..., K)
    return phi @ mean.T, var


def kl(mean: Tensor, spread: Spread, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(q ‖ p) against p(W) = Π_kd N(prior_mean_kd, prior_variance), summed over classes.

        KL = ½ Σ_kd [ (s² + Σ_r F² + (m − m₀)²)/σ₀² − 1 + log σ₀² − log s² ]
             − ½ Σ_k log det(I_R + F_kᵀ diag(s_k⁻²) F_k)

    Args:
        mean: posterior means, ``(K, D)``.
        spread: standard deviations and factors.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.
        prior_variance: prior variance σ₀², a scalar, ``(K, 1)`` or ``(K, D)``.

    Returns:
        The divergence in nats, a scalar.
    """
    second_moment = marginal_scale(spread).square() + (mean - prior_mean).square()
    whitened = spread.factor / spread.scale.unsqueeze(-1)  # (K, D, R)
    eye = torch.eye(whitened.shape[-1], dtype=mean.dtype, device=mean.device)
    root = torch.linalg.cholesky(eye + whitened.mT @ whitened)  # (K, R, R)
    log_capacitance = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum()
    diagonal = second_moment / prior_variance - 1 + torch.log(prior_variance)
    return 0.5 * ((diagonal - 2 * spread.scale.log()).sum() - log_capacitance)


def prior_variance(mean: Tensor, spread: Spread, prior_mean: Tensor) -> Tensor:
    """Return the one shared σ₀² that minimises the KL, hence maximises the ELBO.

        σ₀² = (1/KD) Σ_kd [ s_kd² + Σ_r F_kdr² + (m_kd − m₀_kd)² ]

    Args:
        mean: posterior means, ``(K, D)``.
        spread: standard deviations and factors.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.

    Returns:
        The variance, a scalar.
    """
    return (marginal_scale(spread).square() + (mean - prior_mean).square()).mean()


def sample(
    mean: Tensor, spread: Spread, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weight matrices with rows w_k = m_k + s_k ∘ ε + F_k η by reparametrisation.

    Args:
        mean: posterior means, ``(K, D)``.
        spread: standard deviations and factors.
        samples: how many draws S.
        generator: source of randomness, on the device of ``mean``.

    Returns:
        Draws, ``(S, K, D)``.
    """
    K, D, R = spread.factor.shape
    own = drawn_normals((samples, K, D), mean, generator)
    shared = drawn_normals((samples, K, R), mean, generator)
    along = torch.einsum("kdr,skr->skd", spread.factor, shared)  # (S, K, D)
    return mean + spread.scale * own + along


def marginal_scale(spread: Spread) -> Tensor:
    """Return the standard deviation of every single weight, ``(K, D)``."""
    return (spread.scale.square() + spread.factor.square().sum(-1)).sqrt()
