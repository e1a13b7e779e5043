"""Gaussian over the last layer with one feature covariance for all classes.

    q(W) = N(vec W; vec M, U ⊗ S),   S = L Lᵀ (D, D),   U = C Cᵀ (K, K)

With ``classes`` a vector c (K,) the rows are independent, S_k = c_k² S; with a matrix C (K, K) the
classes are correlated, which the logit variances alone do not show: ask `logit_covariance`.
Storage is D² + K or D² + K², whatever the number of classes times features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayestune.posterior.normals import drawn_normals


class Spread(NamedTuple):
    """Class factors ``(K,)`` or ``(K, K)`` and the feature factor L ``(D, D)``.

    Any invertible square factors will do. L carries the unit of a weight, the class factors none.
    """

    classes: Tensor
    factor: Tensor


def logit_moments(phi: Tensor, mean: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the logits z_k = w_kᵀφ under q.

        μ_k = m_kᵀφ,   v_k = U_kk ‖Lᵀφ‖²

    Args:
        phi: features, ``(..., D)``.
        mean: posterior means, ``(K, D)``.
        spread: class factors and feature factor.

    Returns:
        Logit means and variances, each ``(..., K)``.
    """
    return phi @ mean.T, _length(phi, spread).unsqueeze(-1) * _class_variance(spread)


def kl(mean: Tensor, spread: Spread, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(q ‖ p) against p(W) = Π_kd N(prior_mean_kd, prior_variance), over all weights.

        KL = ½ Σ_kd [ (U_kk S_dd + (m − m₀)²)/σ₀² − 1 + log σ₀² ] − D log|det C| − K log|det L|

    Args:
        mean: posterior means, ``(K, D)``.
        spread: class factors and feature factor.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.
        prior_variance: prior variance σ₀², a scalar, ``(K, 1)`` or ``(K, D)``.

    Returns:
        The divergence in nats, a scalar.
    """
    K, D = mean.shape
    second_moment = marginal_scale(spread).square() + (mean - prior_mean).square()
    if spread.classes.ndim == 1:
        log_classes = spread.classes.abs().log().sum()
    else:
        log_classes = torch.linalg.slogdet(spread.classes).logabsdet
    log_determinant = D * log_classes + K * torch.linalg.slogdet(spread.factor).logabsdet
    return 0.5 * (second_moment / prior_variance - 1 + torch.log(prior_variance)).sum() - (
        log_determinant
    )


def prior_variance(mean: Tensor, spread: Spread, prior_mean: Tensor) -> Tensor:
    """Return the one shared σ₀² that minimises the KL, hence maximises the ELBO.

        σ₀² = (1/KD) [ tr U tr S + ‖M − M₀‖² ]

    Args:
        mean: posterior means, ``(K, D)``.
        spread: class factors and feature factor.
        prior_mean: prior means, ``(K, D)`` or broadcastable to it.

    Returns:
        The variance, a scalar.
    """
    return (marginal_scale(spread).square() + (mean - prior_mean).square()).mean()


def sample(
    mean: Tensor, spread: Spread, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weight matrices W = M + C E Lᵀ by reparametrisation.

    Args:
        mean: posterior means, ``(K, D)``.
        spread: class factors and feature factor.
        samples: how many draws S.
        generator: source of randomness, on the device of ``mean``.

    Returns:
        Draws, ``(S, K, D)``.
    """
    noise = drawn_normals((samples, *mean.shape), mean, generator)
    C = spread.classes.diag() if spread.classes.ndim == 1 else spread.classes
    return mean + C @ noise @ spread.factor.T


def marginal_scale(spread: Spread) -> Tensor:
    """Return the standard deviation of every single weight, √(U_kk S_dd), ``(K, D)``."""
    own = torch.linalg.vector_norm(spread.factor, dim=-1)  # (D,)
    return _class_variance(spread).sqrt().unsqueeze(-1) * own


def logit_covariance(phi: Tensor, spread: Spread) -> Tensor:
    """Return the covariance of the logits of each input, ‖Lᵀφ‖² U, ``(..., K, K)``.

    Args:
        phi: features, ``(..., D)``.
        spread: class factors and feature factor.
    """
    C = spread.classes.diag() if spread.classes.ndim == 1 else spread.classes
    return _length(phi, spread)[..., None, None] * (C @ C.T)


def _length(phi: Tensor, spread: Spread) -> Tensor:
    return (phi @ spread.factor).square().sum(-1)  # (...)


def _class_variance(spread: Spread) -> Tensor:
    if spread.classes.ndim == 1:
        return spread.classes.square()
    return spread.classes.square().sum(-1)  # (K,)
