"""Coordinate ascent of mean and covariance on features that do not move.

Of the κ-weighted evidence lower bound

    L(M, s) = Σ_n ω_n b(μ_n, v_n; y_n) − κ KL(q ‖ p),   μ_n = Mφ_n,  v_nk = Σ_d s_kd² (Qᵀφ_n)_d²

the mean given the variances is a concave problem (L-BFGS), and the variances given the mean have
the fixed point

    s_kd⁻² = 1/σ₀² + (1/κ) Σ_n ω_n c_nk (Qᵀφ_n)_d²,   c_nk = −2 ∂b/∂v_nk

whatever the bound b: c is p̃ = softmax(μ + ½v) for Jensen's, a(1 − a) for the tilted one at its
best tilt a, E p(1 − p) for the expectation itself. Q is any orthogonal basis, one for all classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.posterior import eigen

Bound = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

_HALVINGS = 6


@dataclass(frozen=True)
class Ascent:
    """Where coordinate ascent ended.

    Attributes:
        mean: posterior mean M, ``(K, D)``.
        spread: the posterior's spread in the basis.
        bounds: the bound L in nats after every round, never falling.
    """

    mean: Tensor
    spread: eigen.Spread
    bounds: tuple[float, ...]


def ascend(
    phi: Tensor,
    labels: Tensor,
    mean: Tensor,
    spread: eigen.Spread,
    prior_mean: Tensor,
    prior_variance: Tensor,
    bound: Bound,
    *,
    kappa: float = 1.0,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    rounds: int = 50,
    tolerance: float = 1e-6,
) -> Ascent:
    """Alternate exact mean and covariance updates until the bound stands still.

    Args:
        phi: features, ``(N, D)``.
        labels: class indices, ``(N,)``.
        mean: where the mean starts, ``(K, D)``.
        spread: where the covariance starts; its basis stays.
        prior_mean: prior mean, ``(K, D)``.
        prior_variance: prior variance σ₀², a scalar.
        bound: one of `posterior.bounds`.
        kappa: weight κ of the KL.
        weights: factors ω on the rows, ``(N,)``.
        mask: which classes exist for a row, bool ``(N, K)``.
        rounds: the most rounds.
        tolerance: stop when a round adds less than this per row, in nats.

    Returns:
        Mean, spread and the bound after every round.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599), for the bound; the
    fixed point is its stationarity in the covariance.
    """
    turned = (phi @ spread.features).square()  # (N, D)
    omega = phi.new_ones(len(phi)) if weights is None else weights

    def likelihood(mean: Tensor, var: Tensor) -> Tensor:
        return omega @ bound(phi @ mean.T, var, labels, mask)

    def objective(mean: Tensor, scale: Tensor) -> float:
        divergence = eigen.kl(mean, spread._replace(scale=scale), prior_mean, prior_variance)
        return float(likelihood(mean, turned @ scale.square().T) - kappa * divergence)

    def best_mean(start: Tensor, scale: Tensor) -> Tensor:
        var = turned @ scale.square().T  # (N, K)

        def loss(mean: Tensor) -> Tensor:
            distance = (mean - prior_mean).square().sum() / (2 * prior_variance)
            return kappa * distance - likelihood(mean, var)

        return _minimum(loss, start)

    def fixed_point(mean: Tensor, scale: Tensor) -> Tensor:
        with torch.enable_grad():
            var = (turned @ scale.square().T).requires_grad_()
            (slope,) = torch.autograd.grad(likelihood(mean, var), var)
        return (1 / prior_variance + (-2 / kappa) * slope.T @ turned).rsqrt()

    mean, scale = mean.detach(), spread.scale.detach()
    found = [objective(mean, scale)]
    with torch.no_grad():
        for _ in range(rounds):
            moved = best_mean(mean, scale)
            if objective(moved, scale) >= found[-1]:
                mean = moved
            reached = objective(mean, scale)
            goal = fixed_point(mean, scale)
            # The fixed point may overshoot; somewhere on the way to it the bound is higher.
            for halving in range(_HALVINGS):
                tried = torch.lerp(scale.log(), goal.log(), 0.5**halving).exp()
                if objective(mean, tried) >= reached:
                    scale = tried
                    break
            found.append(objective(mean, scale))
            if found[-1] - found[-2] < tolerance * len(phi):
                break
    return Ascent(mean, spread._replace(scale=scale), tuple(found))


def _minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    x = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([x], max_iter=50, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
    return x.detach()
