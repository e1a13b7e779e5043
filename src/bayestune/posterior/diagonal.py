"""Gaussian over the last layer with one independent standard deviation per weight.

    q(W) = Π_k N(w_k; m_k, diag(s_k²))

``scale`` holds the standard deviations s (K, D), never variances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.posterior.normals import drawn_normals


def logit_moments(phi: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the logits z_k = w_kᵀφ under q.

        μ_k = m_kᵀφ,   v_k = Σ_d s_kd² φ_d²

    The logits of different classes are independent, because the rows of W are.

    Args:
        phi: features, ``(..., D)``.
        mean: posterior means, ``(K, D)``.
        scale: posterior standard deviations, ``(K, D)``.

    Returns:
        Logit means and variances, each ``(..., K)``.
    """
    return phi @ mean.T, phi.square() @ scale.square().T


def kl(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(q ‖ p) against p(W) = Π_kd N(prior_mean_kd, prior_variance), summed over classes.

        KL = ½ Σ_kd [ (s² + (m − m₀)²)/σ₀² − 1 + log σ₀² − log s² ]

    Args:
        mean: posterior means, ``(K, D)``.
        scale: posterior standard deviations, ``(K, D)``.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.
        prior_variance: prior variance σ₀², a scalar, ``(K, 1)`` or ``(K, D)``.

    Returns:
        The divergence in nats, a scalar.
    """
    spread = (scale.square() + (mean - prior_mean).square()) / prior_variance
    return 0.5 * (spread - 1 + torch.log(prior_variance) - 2 * scale.log()).sum()


def prior_variance(mean: Tensor, scale: Tensor, prior_mean: Tensor) -> Tensor:
    """Return the one shared σ₀² that minimises the KL, hence maximises the ELBO.

        σ₀² = (1/KD) Σ_kd [ s_kd² + (m_kd − m₀_kd)² ]

    Args:
        mean: posterior means, ``(K, D)``.
        scale: posterior standard deviations, ``(K, D)``.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.

    Returns:
        The variance, a scalar.
    """
    return (scale.square() + (mean - prior_mean).square()).mean()


def sample(
    mean: Tensor, scale: Tensor, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weight matrices W = m + s ∘ ε by reparametrisation.

    Args:
        mean: posterior means, ``(K, D)``.
        scale: posterior standard deviations, ``(K, D)``.
        samples: how many draws S.
        generator: source of randomness, on the device of ``mean``.

    Returns:
        Draws, ``(S, K, D)``.
    """
    return mean + unwhiten(scale, drawn_normals((samples, *mean.shape), mean, generator))


def unwhiten(scale: Tensor, u: Tensor) -> Tensor:
    """Return s ∘ u: of standard normal coordinates ``(..., K, D)`` it has the covariance of q."""
    return scale * u


def log_determinant(scale: Tensor) -> Tensor:
    """Return log det of the covariance of all weights, a scalar."""
    return 2 * scale.log().sum()


def absorb(scale: Tensor, phi: Tensor, own: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the spread after rows of known curvature, of the old one as their prior.

        s_kd⁻² + Σ_n c_nk φ_nd²

    It is the member of the family nearest to (S_k⁻¹ + Σ_n c_nk φφᵀ)⁻¹, by KL(q ‖ ·).

    Args:
        scale: standard deviations before, ``(K, D)``.
        phi: features, ``(N, D)``.
        own: curvatures c of the rows in each logit, ``(N, K)``.
        like: not looked at; other families need it.

    Returns:
        Standard deviations, ``(K, D)``.
    """
    return (scale.square().reciprocal() + own.T @ phi.square()).rsqrt()
