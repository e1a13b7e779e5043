"""Gaussian over the last layer, dense in the span of a few features and isotropic outside it.

    q(W) = Π_k N(w_k; m_k, V L_k L_kᵀ Vᵀ + r² (I − V Vᵀ)),   VᵀV = I

What N rows teach lies in their span: with N < D features per row this is the dense family in
KN² + DN numbers instead of KD². (Woodbury's identity, in a basis that all classes share.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayestune.posterior import dense
from bayestune.posterior.normals import drawn_normals


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
    D, R = spread.basis.shape
    log_determinant = torch.linalg.slogdet(spread.factor).logabsdet.sum()
    log_determinant = log_determinant + len(mean) * (D - R) * spread.rest.log()
    return 0.5 * (second_moment / prior_variance - 1 + torch.log(prior_variance)).sum() - (
        log_determinant
    )


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
    inside = dense.sample(mean @ spread.basis, spread.factor, samples, generator)  # (S, K, R)
    free = mean + spread.rest * drawn_normals((samples, *mean.shape), mean, generator)
    return free + (inside - free @ spread.basis) @ spread.basis.T


def marginal_scale(spread: Spread) -> Tensor:
    """Return the standard deviation of every single weight, ``(K, D)``."""
    inside = torch.stack([(spread.basis @ L).square().sum(1) for L in spread.factor])  # (K, D)
    beyond = (1 - spread.basis.square().sum(1)).clamp_min(0)  # (D,)
    return (inside + spread.rest.square() * beyond).sqrt()


def outside(phi: Tensor, inside: Tensor) -> Tensor:
    """Return ‖φ‖² − ‖Vᵀφ‖², the energy outside the span, ``(...)``, never negative."""
    return (phi.square().sum(-1) - inside.square().sum(-1)).clamp_min(0)
