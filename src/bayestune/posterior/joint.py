"""Gaussian over the last layer with one covariance for all its weights.

    q(W) = N(vec W; vec M, L Lᵀ),   rows of W one after the other

``factor`` holds L (K·D, K·D), any invertible square factor. Storage is (KD)²: for KD up to a few
thousand. Classes are correlated: the logit variances alone do not say all, `logit_covariance` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.posterior.normals import drawn_normals

#: Numbers (B, K, K·D) handled at once.
_ELEMENTS = 2**22


def logit_moments(phi: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the logits z_k = w_kᵀφ under q.

        μ_k = m_kᵀφ,   v_k = ‖L_kᵀφ‖²,   L_k the rows of L that belong to class k

    Args:
        phi: features, ``(..., D)``.
        mean: posterior means, ``(K, D)``.
        factor: covariance factor, ``(K·D, K·D)``.

    Returns:
        Logit means and variances, each ``(..., K)``.
    """
    rows = factor.unflatten(0, mean.shape)  # (K, D, K·D)
    var = torch.stack([(phi @ L).square().sum(-1) for L in rows], dim=-1)  # (..., K)
    return phi @ mean.T, var


def kl(mean: Tensor, factor: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(q ‖ p) against p(W) = Π_kd N(prior_mean_kd, prior_variance), over all weights.

        KL = ½ Σ_kd [ ((L Lᵀ)_kd,kd + (m − m₀)²)/σ₀² − 1 + log σ₀² ] − log|det L|

    Args:
        mean: posterior means, ``(K, D)``.
        factor: covariance factor, ``(K·D, K·D)``.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.
        prior_variance: prior variance σ₀², a scalar, ``(K, 1)`` or ``(K, D)``.

    Returns:
        The divergence in nats, a scalar.
    """
    spread = marginal_scale(factor).view_as(mean)
    second_moment = spread.square() + (mean - prior_mean).square()
    energy = second_moment / prior_variance - 1 + torch.log(prior_variance)
    return 0.5 * (energy.sum() - log_determinant(factor))


def prior_variance(mean: Tensor, factor: Tensor, prior_mean: Tensor) -> Tensor:
    """Return the one shared σ₀² that minimises the KL, hence maximises the ELBO.

        σ₀² = (1/KD) [ ‖L‖² + ‖M − M₀‖² ]

    Args:
        mean: posterior means, ``(K, D)``.
        factor: covariance factor, ``(K·D, K·D)``.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.

    Returns:
        The variance, a scalar.
    """
    spread = marginal_scale(factor).view_as(mean)
    return (spread.square() + (mean - prior_mean).square()).mean()


def sample(
    mean: Tensor, factor: Tensor, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weight matrices with vec W = vec M + L ε by reparametrisation.

    Args:
        mean: posterior means, ``(K, D)``.
        factor: covariance factor, ``(K·D, K·D)``.
        samples: how many draws S.
        generator: source of randomness, on the device of ``mean``.

    Returns:
        Draws, ``(S, K, D)``.
    """
    return mean + unwhiten(factor, drawn_normals((samples, *mean.shape), mean, generator))


def unwhiten(factor: Tensor, u: Tensor) -> Tensor:
    """Return L vec u: of standard normal coordinates ``(..., K, D)`` it has the covariance of q."""
    return (u.flatten(-2) @ factor.T).unflatten(-1, u.shape[-2:])


def log_determinant(factor: Tensor) -> Tensor:
    """Return log det of the covariance of all weights, a scalar."""
    return 2 * torch.linalg.slogdet(factor).logabsdet


def absorb(factor: Tensor, curvature: Tensor) -> Tensor:
    """Return the spread after rows of known curvature, of the old one as their prior; exact.

        ((L Lᵀ)⁻¹ + G)⁻¹ = L (I + LᵀG L)⁻¹ Lᵀ

    Args:
        factor: covariance factor before, ``(K·D, K·D)``.
        curvature: G of the rows, see `curvature.full`, ``(K·D, K·D)``.

    Returns:
        A covariance factor, ``(K·D, K·D)``.
    """
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky(eye + factor.T @ curvature @ factor)
    return torch.linalg.solve_triangular(root, factor.T, upper=False).T


def marginal_scale(factor: Tensor) -> Tensor:
    """Return the standard deviation of every single weight, √diag(L Lᵀ), ``(K·D,)``."""
    return torch.linalg.vector_norm(factor, dim=-1)


def logit_covariance(phi: Tensor, factor: Tensor) -> Tensor:
    """Return the covariance of the logits of each input, φᵀL_k L_jᵀφ, ``(B, K, K)``.

    L Lᵀ is never formed: it would cost (KD)³, whatever B.

    Args:
        phi: features, ``(B, D)``.
        factor: covariance factor, ``(K·D, K·D)``.
    """
    rows = factor.unflatten(0, (-1, phi.shape[-1]))  # (K, D, K·D)
    size = max(1, _ELEMENTS // (len(rows) * len(factor)))
    cov = []
    for part in phi.split(size):
        turned = torch.stack([part @ L for L in rows], dim=1)  # (b, K, K·D), φᵀL_k
        cov.append(turned @ turned.mT)
    return torch.cat(cov)
