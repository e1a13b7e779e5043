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
    energy = spread - 1 + torch.log(prior_variance)
    return 0.5 * (energy.sum() - log_determinant(factor))


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
    return mean + unwhiten(factor, drawn_normals((samples, *mean.shape), mean, generator))


def unwhiten(factor: Tensor, u: Tensor) -> Tensor:
    """Return L_k u_k: of standard normal coordinates ``(..., K, D)`` it has the covariance of q."""
    return torch.einsum("kij,...kj->...ki", factor, u)  # (..., K, D)


def log_determinant(factor: Tensor) -> Tensor:
    """Return log det of the covariance of all weights, a scalar."""
    return 2 * torch.linalg.slogdet(factor).logabsdet.sum()


def absorb(factor: Tensor, phi: Tensor, own: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the spread after rows of known curvature, of the old one as their prior; exact.

        (S_k⁻¹ + Σ_n c_nk φφᵀ)⁻¹ = L_k (I + BᵀB)⁻¹ L_kᵀ,   B = diag(√c_k) ΦL_k

    With fewer rows than features nothing of size D³ is done: of B Bᵀ = U diag(λ) Uᵀ

        (I + BᵀB)^-½ = I − BᵀU diag(1 / (√(1 + λ) (1 + √(1 + λ)))) UᵀB

    Args:
        factor: covariance factors before, ``(K, D, D)``.
        phi: features, ``(N, D)``.
        own: curvatures c of the rows in each logit, ``(N, K)``.
        like: not looked at; other families need it.

    Returns:
        Covariance factors, ``(K, D, D)``.
    """
    eye = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    found = torch.empty_like(factor)
    for k, L in enumerate(factor):
        B = own[:, k, None].clamp_min(0).sqrt() * (phi @ L)  # (N, D)
        if len(phi) < len(eye):
            values, U = torch.linalg.eigh(B @ B.T)
            grown = (1 + values.clamp_min(0)).sqrt()
            V = B.T @ U  # (D, N)
            found[k] = L - (L @ V / (grown * (1 + grown))) @ V.T
        else:
            root = torch.linalg.cholesky(eye + B.T @ B)
            found[k] = torch.linalg.solve_triangular(root, L.T, upper=False).T
    return found


def marginal_scale(factor: Tensor) -> Tensor:
    """Return the standard deviation of every single weight, √diag(L_k L_kᵀ), ``(K, D)``."""
    return torch.linalg.vector_norm(factor, dim=-1)
