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

from bayestune.posterior import dense
from bayestune.posterior.normals import drawn_normals

#: Sweeps of `absorb` at most, and the change of a variance's logarithm that counts as none.
_SWEEPS, _SETTLED = 200, 1e-9


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
    second_moment = marginal_scale(spread).square() + (mean - prior_mean).square()
    energy = second_moment / prior_variance - 1 + torch.log(prior_variance)
    return 0.5 * (energy.sum() - log_determinant(spread))


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
    return mean + unwhiten(spread, drawn_normals((samples, *mean.shape), mean, generator))


def unwhiten(spread: Spread, u: Tensor) -> Tensor:
    """Return C u Lᵀ: of standard normal coordinates ``(..., K, D)`` it has the covariance of q."""
    C = spread.classes.diag() if spread.classes.ndim == 1 else spread.classes
    return C @ u @ spread.factor.T


def log_determinant(spread: Spread) -> Tensor:
    """Return log det of the covariance of all weights, a scalar."""
    if spread.classes.ndim == 1:
        log_classes = spread.classes.abs().log().sum()
    else:
        log_classes = torch.linalg.slogdet(spread.classes).logabsdet
    K, D = len(spread.classes), len(spread.factor)
    return 2 * (D * log_classes + K * torch.linalg.slogdet(spread.factor).logabsdet)


def absorb(spread: Spread, phi: Tensor, own: Tensor, like: Spread | None = None) -> Spread:
    """Return the spread after rows of known curvature, of the old one as their prior.

        S⁻¹ = (1/K) Σ_k a_k² P_k,   a_k⁻² = tr(P_k S) / D,   P_k = (c_k² L Lᵀ)⁻¹ + Σ_n ω_nk φφᵀ

    in turn until they stand still: the member of the family that is nearest to the exact posterior
    N(·, P_k⁻¹), by KL(q ‖ ·). The classes must be independent, ``classes`` a vector.

    Args:
        spread: class factors c and feature factor before.
        phi: features, ``(N, D)``.
        own: curvatures ω of the rows in each logit, ``(N, K)``.
        like: an earlier result, to start from its class factors.

    Returns:
        Class factors a and a feature factor.
    """
    L, old = spread.factor, spread.classes.square().reciprocal()  # (K,)
    white = phi @ L  # (N, D), in which the old S is the identity
    eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
    scales = (spread if like is None else like).classes.square()
    for _ in range(_SWEEPS):
        start = (scales * old).mean().rsqrt() * eye
        pooled = own @ scales / len(old)  # (N,)
        (factor,) = dense.absorb(start[None], white, pooled[:, None])
        energy = (white @ factor).square().sum(1)  # (N,)
        before, scales = scales, len(L) / (old * factor.square().sum() + energy @ own)
        if (scales / before).log().abs().max() < _SETTLED:
            break
    return Spread(scales.sqrt(), L @ factor)


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
