"""The mean of a last layer on features that do not move: a concave problem in well-scaled units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 500


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
    moved = ((start @ vectors - centre) / scale).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [moved],
        max_iter=_STEPS,
        history_size=20,
        tolerance_grad=tolerance * len(phi) ** 0.5,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        offset = scale * moved
        fit = log_likelihood(z @ (centre + offset).T)
        own = offset @ vectors.T if by_weight else offset
        loss = 0.5 * (tau * own.square()).sum() - fit
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return (centre + scale * moved.detach()) @ vectors.T
