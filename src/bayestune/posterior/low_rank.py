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

from bayestune.posterior.descent import descend
from bayestune.posterior.normals import drawn_normals

#: Numbers (K, D, R) that `absorb` moves at once, and the gradient at which it stops.
_NUMBERS, _TOLERANCE = 2**21, 1e-5
#: Least variance of the diagonal, as a share of what the weight had.
_LEAST = 1e-6


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
    energy = second_moment / prior_variance - 1 + torch.log(prior_variance)
    return 0.5 * (energy.sum() - log_determinant(spread))


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
    return mean + unwhiten(spread, drawn_normals((samples, *mean.shape), mean, generator))


def unwhiten(spread: Spread, u: Tensor) -> Tensor:
    """Return s ∘ (I + GGᵀ)^½ u with G = F/s ``(..., K, D)``, of covariance S_k for normal u.

    With GᵀG = V diag(λ) Vᵀ the root is I + G V diag(1 / (1 + √(1 + λ))) VᵀGᵀ.
    """
    G, values, V = _whitened(spread)
    turned = G @ V  # (K, D, R)
    along = torch.einsum("kdr,...kd->...kr", turned, u) / (1 + (1 + values).sqrt())
    return spread.scale * (u + torch.einsum("kdr,...kr->...kd", turned, along))


def log_determinant(spread: Spread) -> Tensor:
    """Return log det of the covariance of all weights, a scalar."""
    whitened = spread.factor / spread.scale.unsqueeze(-1)  # (K, D, R)
    eye = torch.eye(whitened.shape[-1], dtype=whitened.dtype, device=whitened.device)
    root = torch.linalg.cholesky(eye + whitened.mT @ whitened)  # (K, R, R)
    log_capacitance = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum()
    return 2 * spread.scale.log().sum() + log_capacitance


def absorb(spread: Spread, phi: Tensor, own: Tensor, like: Spread | None = None) -> Spread:
    """Return the spread after rows of known curvature, of the old one as their prior.

        min over s', F' of  Σ_k tr(S_k⁻¹S'_k) + Σ_nk c_nk v'_nk − log det S'_k

    This has no closed form: L-BFGS, from the old spread or an earlier result, finds the member of
    the family that is nearest to the exact posterior, by KL(q ‖ ·); it may be a local one.

    Args:
        spread: standard deviations and factors before.
        phi: features, ``(N, D)``.
        own: curvatures c of the rows in each logit, ``(N, K)``.
        like: an earlier result, to start from.

    Returns:
        Standard deviations and factors.
    """
    # Classes do not depend on each other: blocks of them bound what L-BFGS remembers.
    size = max(1, _NUMBERS // spread.factor[0].numel())
    parts = zip(
        *(t.split(size) for t in (*spread, *(spread if like is None else like))),
        own.split(size, 1),
        strict=True,
    )
    found = [_nearest(Spread(s, F), Spread(a, B), phi, c) for s, F, a, B, c in parts]
    return Spread(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))


def _nearest(spread: Spread, start: Spread, phi: Tensor, own: Tensor) -> Spread:
    scale = spread.scale.unsqueeze(-1)
    G, values, V = _whitened(spread)
    # (I + GGᵀ)⁻¹ = I − H Hᵀ
    H = G @ V / (1 + values).sqrt().unsqueeze(1)  # (K, D, R)
    free = 1 - H.square().sum(-1)  # (K, D)

    # Columns can say all of a weight; a diagonal of zero could not be a prior any more.
    least = _LEAST * (1 + G.square().sum(-1))  # (K, D)

    def spread_at(log_ratio: Tensor, columns: Tensor) -> Spread:
        return Spread(spread.scale * ((2 * log_ratio).exp() + least).sqrt(), scale * columns)

    def goal(log_ratio: Tensor, columns: Tensor) -> Tensor:
        tried = spread_at(log_ratio, columns)
        _, var = logit_moments(phi, spread.scale, tried)
        trace = (((2 * log_ratio).exp() + least) * free).sum() + columns.square().sum()
        trace = trace - (H.mT @ columns).square().sum()
        return 0.5 * (trace + (own * var).sum() - log_determinant(tried))

    ratio = ((start.scale / spread.scale).square() - least).clamp_min(least)
    found = descend(goal, 0.5 * ratio.log(), start.factor / scale, tolerance=_TOLERANCE)
    return spread_at(*found)


def _whitened(spread: Spread) -> tuple[Tensor, Tensor, Tensor]:
    """Return G = F/s ``(K, D, R)``, and eigenvalues and eigenvectors of GᵀG."""
    G = spread.factor / spread.scale.unsqueeze(-1)
    values, V = torch.linalg.eigh(G.mT @ G)
    return G, values.clamp_min(0), V


def marginal_scale(spread: Spread) -> Tensor:
    """Return the standard deviation of every single weight, ``(K, D)``."""
    return (spread.scale.square() + spread.factor.square().sum(-1)).sqrt()
