"""Coordinate ascent of mean and covariance on features that do not move.

Of the κ-weighted evidence lower bound

    L(M, S) = Σ_n ω_n b(μ_n, v_n; y_n) − κ KL(q ‖ p),   μ_n = Mφ_n,  v_nk = φ_nᵀS_kφ_n

the mean given the variances is a concave problem (L-BFGS), and the covariance given the mean has
the fixed point

    S_k⁻¹ = I/σ₀² + (1/κ) Σ_n ω_n c_nk φ_nφ_nᵀ,   c_nk = −2 ∂b/∂v_nk

whatever the bound b: c is p̃ = softmax(μ + ½v) for Jensen's, a(1 − a) for the tilted one at its
best tilt a, E p(1 − p) for the expectation itself. It has the form of a Laplace posterior with
other curvatures of the rows, and a step towards it, linear in c, is one of natural gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.posterior import dense, diagonal, eigen, subspace
from bayestune.posterior.laplace import Block, Diagonal, Eigen, Span
from bayestune.posterior.mode import basis_of, mode

Bound = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

_HALVINGS = 6
#: Variance to start from; at zero itself the slopes of quadratures, taken in deviations, vanish.
_SMALL = 1e-4
_KL = {Diagonal: diagonal.kl, Eigen: eigen.kl, Block: dense.kl, Span: subspace.kl}


@dataclass(frozen=True)
class Ascent:
    """Where coordinate ascent ended.

    Attributes:
        mean: posterior mean M, ``(K, D)``.
        form: what the data add to the prior's precision 1/σ₀²; its spread there is S.
        bounds: the bound L in nats after every round, never falling.
    """

    mean: Tensor
    form: Diagonal | Eigen | Block | Span
    bounds: tuple[float, ...]


def ascend(
    phi: Tensor,
    labels: Tensor,
    mean: Tensor,
    form: type[Diagonal] | type[Eigen] | type[Block] | type[Span],
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

    The covariance starts at its fixed point for variances close to zero.

    Args:
        phi: features, ``(N, D)``.
        labels: class indices, ``(N,)``.
        mean: where the mean starts, ``(K, D)``.
        form: which covariance: of the diagonal, of the eigenbasis at the start, or of blocks
            (in the rows' span).
        prior_mean: prior mean, ``(K, D)``.
        prior_variance: prior variance σ₀², a scalar.
        bound: one of `posterior.bounds`.
        kappa: weight κ of the KL.
        weights: factors ω on the rows, ``(N,)``.
        mask: which classes exist for a row, bool ``(N, K)``.
        rounds: the most rounds.
        tolerance: stop when a round adds less than this per row, in nats.

    Returns:
        Mean, covariance and the bound after every round.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599), for the bound; the
    fixed point is its stationarity in the covariance.
    """
    omega = phi.new_ones(len(phi)) if weights is None else weights
    precision = 1 / float(prior_variance)
    rotation = basis_of(phi)

    def likelihood(mu: Tensor, var: Tensor) -> Tensor:
        return omega @ bound(mu, var, labels, mask)

    def covariance(c: Tensor) -> Diagonal | Eigen | Block | Span:
        if form is Eigen:
            return Eigen(c.T @ (phi @ rotation[1]).square(), rotation[1])
        return form.of(phi, c)

    def objective(mean: Tensor, now: Diagonal | Eigen | Block | Span) -> float:
        spread = now.spread(precision)
        divergence = _KL[form](mean, spread, prior_mean, prior_variance)  # pyright: ignore
        return float(likelihood(phi @ mean.T, now.variance(phi, precision)) - kappa * divergence)

    def goal(mean: Tensor, var: Tensor) -> Tensor:
        with torch.enable_grad():
            var = var.detach().requires_grad_()
            (slope,) = torch.autograd.grad(likelihood(phi @ mean.T, var), var)
        return (-2 / kappa) * slope  # (N, K)

    with torch.no_grad():
        mean = mean.detach()
        c = goal(mean, phi.new_full((len(phi), len(mean)), _SMALL))
        now = covariance(c)
        found = [objective(mean, now)]
        for _ in range(rounds):
            var = now.variance(phi, precision)

            def fit(mu: Tensor, var: Tensor = var) -> Tensor:
                return likelihood(mu, var) / kappa

            moved = mode(phi, mean, prior_mean, precision, fit, basis=rotation)
            reached = objective(moved, now)
            if reached >= found[-1]:
                mean = moved
            else:
                reached = found[-1]
            target = goal(mean, var)
            # The fixed point may overshoot; somewhere on the way to it the bound is higher.
            for halving in range(_HALVINGS):
                tried = torch.lerp(c, target, 0.5**halving)
                there = covariance(tried)
                value = objective(mean, there)
                if value >= reached:
                    c, now, reached = tried, there, value
                    break
            found.append(reached)
            if found[-1] - found[-2] < tolerance * len(phi):
                break
    return Ascent(mean, now, tuple(found))
