"""Gaussian over the last layer, dense in the span of a few features and isotropic outside it.

    q(W) = Π_k N(w_k; m_k, V L_k L_kᵀ Vᵀ + r² (I − V Vᵀ)),   VᵀV = I

What N rows teach lies in their span: with N < D features per row this is the dense family in
KN² + DN numbers instead of KD². (Woodbury's identity, in a basis that all classes share.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bayestune.posterior import dense
from bayestune.posterior.normals import drawn_normals

#: Numbers (K, R, R) up to which the span grows.
_NUMBERS = 2**27


class Spread(NamedTuple):
    """Factors L ``(K, R, R)``, orthonormal columns V ``(D, R)`` and deviation r outside, scalar."""

    factor: Tensor
    basis: Tensor
    rest: Tensor


def logit_moments(phi: Tensor, mean: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the logits z_k = w_kᵀφ under q.

        μ_k = m_kᵀφ,   v_k = ‖L_kᵀVᵀφ‖² + r² (‖φ‖² − ‖Vᵀφ‖²)

    Args:
        phi: features, ``(..., D)``.
        mean: posterior means, ``(K, D)``.
        spread: factors, basis and deviation outside.

    Returns:
        Logit means and variances, each ``(..., K)``.
    """
    inside = phi @ spread.basis  # (..., R)
    _, var = dense.logit_moments(inside, mean @ spread.basis, spread.factor)
    return phi @ mean.T, var + spread.rest.square() * outside(phi, inside).unsqueeze(-1)


def kl(mean: Tensor, spread: Spread, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(q ‖ p) against p(W) = Π_kd N(prior_mean_kd, prior_variance), summed over classes.

        KL = ½ Σ_kd [ (Var W_kd + (m − m₀)²)/σ₀² − 1 + log σ₀² ]
             − Σ_k log|det L_k| − K (D − R) log r

    Args:
        mean: posterior means, ``(K, D)``.
        spread: factors, basis and deviation outside.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.
        prior_variance: prior variance σ₀², a scalar, ``(K, 1)`` or ``(K, D)``.

    Returns:
        The divergence in nats, a scalar.
    """
    second_moment = marginal_scale(spread).square() + (mean - prior_mean).square()
    energy = second_moment / prior_variance - 1 + torch.log(prior_variance)
    return 0.5 * (energy.sum() - log_determinant(spread))


def prior_variance(mean: Tensor, spread: Spread, prior_mean: Tensor) -> Tensor:
    """Return the one shared σ₀² that minimises the KL, hence maximises the ELBO.

        σ₀² = (1/KD) Σ_kd [ Var W_kd + (m_kd − m₀_kd)² ]

    Args:
        mean: posterior means, ``(K, D)``.
        spread: factors, basis and deviation outside.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.

    Returns:
        The variance, a scalar.
    """
    return (marginal_scale(spread).square() + (mean - prior_mean).square()).mean()


def sample(
    mean: Tensor, spread: Spread, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weight matrices with rows w_k = m_k + V L_k ε + r (I − VVᵀ) η by reparametrisation.

    Args:
        mean: posterior means, ``(K, D)``.
        spread: factors, basis and deviation outside.
        samples: how many draws S.
        generator: source of randomness, on the device of ``mean``.

    Returns:
        Draws, ``(S, K, D)``.
    """
    return mean + unwhiten(spread, drawn_normals((samples, *mean.shape), mean, generator))


def unwhiten(spread: Spread, u: Tensor) -> Tensor:
    """Return V L_k Vᵀu_k + r (I − V Vᵀ) u_k ``(..., K, D)``, of covariance S_k for normal u."""
    along = u @ spread.basis  # (..., K, R)
    inside = dense.unwhiten(spread.factor, along)
    return spread.rest * u + (inside - spread.rest * along) @ spread.basis.T


def log_determinant(spread: Spread) -> Tensor:
    """Return log det of the covariance of all weights, a scalar."""
    D, R = spread.basis.shape
    free = 2 * len(spread.factor) * (D - R)
    return dense.log_determinant(spread.factor) + free * spread.rest.log()


def absorb(spread: Spread, phi: Tensor, own: Tensor, like: Spread | None = None) -> Spread:
    """Return the spread after rows of known curvature, of the old one as their prior.

    The span takes in what the rows have outside it, and within it the posterior is exact; what is
    left outside counts as isotropic, too,

        r'⁻² = r⁻² + Σ_nk c_nk ‖(I − V Vᵀ)φ_n‖² / (K (D − R))

    which is nothing as long as the blocks hold no more than 2²⁷ numbers (512 MB in fp32), and the
    result is exact. Beyond, only the directions of most energy are taken in.

    Args:
        spread: factors, basis and deviation outside before.
        phi: features, ``(N, D)``.
        own: curvatures c of the rows in each logit, ``(N, K)``.
        like: an earlier result, whose basis is to be taken.

    Returns:
        Factors and basis of the wider span, deviation outside.
    """
    K, R = spread.factor.shape[:2]
    basis = _widened(phi, spread.basis, K) if like is None else like.basis
    D, wider = basis.shape
    factor = spread.rest * torch.eye(wider, dtype=phi.dtype, device=phi.device).repeat(K, 1, 1)
    factor[:, :R, :R] = spread.factor
    x = phi @ basis  # (N, wider)
    rest = spread.rest
    if wider < D:
        beyond = own.sum(1) @ outside(phi, x) / (K * (D - wider))
        rest = (rest.square().reciprocal() + beyond).rsqrt()
    return Spread(dense.absorb(factor, x, own), basis, rest)


def _widened(phi: Tensor, basis: Tensor, num_classes: int) -> Tensor:
    """Return the basis with what features ``(N, D)`` have outside it, as far as it may grow."""
    D, R = basis.shape
    most = min(D, max(R, math.isqrt(_NUMBERS // num_classes))) - R
    off = phi
    for _ in range(2):  # once more for what rounding left inside
        off = off - (off @ basis) @ basis.T
    values, rows = torch.linalg.eigh(off @ off.T)
    kept = values > phi.square().sum() * torch.finfo(torch.float32).eps ** 2
    kept &= torch.arange(len(values), device=phi.device) >= len(values) - most
    added = torch.linalg.qr(torch.cat([basis, off.T @ rows[:, kept] / values[kept].sqrt()], 1)).Q
    return torch.cat([basis, added[:, R:]], 1)


def marginal_scale(spread: Spread) -> Tensor:
    """Return the standard deviation of every single weight, ``(K, D)``."""
    inside = torch.stack([(spread.basis @ L).square().sum(1) for L in spread.factor])  # (K, D)
    beyond = (1 - spread.basis.square().sum(1)).clamp_min(0)  # (D,)
    return (inside + spread.rest.square() * beyond).sqrt()


def outside(phi: Tensor, inside: Tensor) -> Tensor:
    """Return ‖φ‖² − ‖Vᵀφ‖², the energy outside the span, ``(...)``, never negative."""
    return (phi.square().sum(-1) - inside.square().sum(-1)).clamp_min(0)
