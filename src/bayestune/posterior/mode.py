"""The mean of a last layer on features that do not move: a concave problem in well-scaled units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayestune.posterior.descent import descend


def basis_of(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``(D,)`` and eigenvectors in columns ``(D, D)`` of Σ φφᵀ."""
    values, vectors = torch.linalg.eigh(phi.double().T @ phi.double())
    return values.clamp_min(0).to(phi), vectors.to(phi)


def mode(
    phi: Tensor,
    start: Tensor,
    prior_mean: Tensor,
    precision: float | Tensor,
    log_likelihood: Callable[[Tensor], Tensor],
    *,
    basis: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-5,
) -> Tensor:
    """Return the weights that maximise a concave log likelihood with a Gaussian prior.

        W* = argmax_W  ℓ(Wφ_1 … Wφ_N) − ½ Σ_kd τ_kd (w − m)²_kd

    L-BFGS on W = M + V diag(λ + τ)^-½ Qᵀ with Σφφᵀ = Q diag(λ) Qᵀ: the features of a language model
    have directions whose energies differ by many orders, and in these units the curvature lies
    between that of the likelihood in its own logits and one.

    Args:
        phi: features, ``(N, D)``; float64 reaches the optimum itself.
        start: where to begin, ``(K, D)``.
        prior_mean: prior mean M, ``(K, D)``.
        precision: prior precision τ, a scalar or ``(K, D)``.
        log_likelihood: of logits ``(N, K)``, summed over rows; concave.
        basis: `basis_of` the features, where it is known.
        tolerance: largest gradient in these units, per root of a row, at which to stop.

    Returns:
        The weights, ``(K, D)``.
    """
    values, vectors = basis_of(phi) if basis is None else basis
    tau = torch.as_tensor(precision, dtype=phi.dtype, device=phi.device)
    by_weight = tau.ndim == 2
    turned = tau.log().mean(1, keepdim=True).exp() if by_weight else tau
    scale = (values + turned).rsqrt()  # (D,) or (K, D)
    z = phi @ vectors  # (N, D)
    centre = prior_mean @ vectors

    def goal(moved: Tensor) -> Tensor:
        offset = scale * moved
        fit = log_likelihood(z @ (centre + offset).T)
        own = offset @ vectors.T if by_weight else offset
        return 0.5 * (tau * own.square()).sum() - fit

    (moved,) = descend(
        goal, (start @ vectors - centre) / scale, tolerance=tolerance * len(phi) ** 0.5
    )
    return (centre + scale * moved) @ vectors.T


def mode_around(
    phi: Tensor,
    start: Tensor,
    prior_mean: Tensor,
    unwhiten: Callable[[Tensor], Tensor],
    log_likelihood: Callable[[Tensor], Tensor],
    *,
    tolerance: float = 1e-6,
) -> Tensor:
    """Return the weights that maximise a concave log likelihood with any Gaussian prior.

        W* = M + L u*,   u* = argmax_u  ℓ(Wφ_1 … Wφ_N) − ½ ‖u‖²,   W = M + L u

    L is the whole of the prior, whatever its family, and neither it nor the covariance L Lᵀ is ever
    formed or inverted. In these units the prior's curvature is one.

    Args:
        phi: features, ``(N, D)``.
        start: where to begin, in coordinates u, ``(K, D)``.
        prior_mean: prior mean M, ``(K, D)``.
        unwhiten: L, as the prior's family has it.
        log_likelihood: of logits ``(N, K)``, summed over rows; concave.
        tolerance: largest gradient in these units, per root of a row, at which to stop.

    Returns:
        The coordinates u*, ``(K, D)``.
    """
    known = phi @ prior_mean.T  # (N, K)

    def goal(u: Tensor) -> Tensor:
        return 0.5 * u.square().sum() - log_likelihood(known + phi @ unwhiten(u).T)

    return descend(goal, start, tolerance=tolerance * len(phi) ** 0.5)[0]
