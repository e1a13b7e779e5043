"""Coordinate ascent of mean and covariance on features that do not move.

Of the κ-weighted evidence lower bound

    L(M, S) = Σ_n ω_n b(μ_n, v_n; y_n) − κ KL(q ‖ p),   μ_n = Mφ_n,  v_nk = φ_nᵀS_kφ_n

the mean given the variances is a concave problem (L-BFGS), and the covariance given the mean has
the fixed point

    S_k⁻¹ = I/σ₀² + (1/κ) Σ_n ω_n c_nk φ_nφ_nᵀ,   c_nk = −2 ∂b/∂v_nk

whatever the bound b: c is p̃ = softmax(μ + ½v) for Jensen's, a(1 − a) for the tilted one at its
best tilt a, E p(1 − p) for the expectation itself. It has the form of a Laplace posterior with
other curvatures of the rows, and a step towards it, linear in c, is one of natural gradient.

Nothing of this asks for an isotropic prior: with the posterior of earlier rows in its place

    S_k⁻¹ = S_old,k⁻¹ + (1/κ) Σ_n ω_n c_nk φ_nφ_nᵀ

is the recursive update of it (`ascend_around`), in whatever family it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bayestune.posterior.laplace import Block, Diagonal, Eigen, Span
from bayestune.posterior.priors import Earlier, Isotropic, Prior

Bound = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

_HALVINGS = 6
#: Variance to start from; at zero itself the slopes of quadratures, taken in deviations, vanish.
_SMALL = 1e-4


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


@dataclass(frozen=True)
class AscentAround:
    """Where coordinate ascent around an earlier posterior ended.

    Attributes:
        mean: posterior mean M, ``(K, D)``.
        spread: posterior spread, in the family of the earlier one.
        bounds: the bound L in nats after every round, never falling.
    """

    mean: Tensor
    spread: Any
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
    prior = Isotropic(phi, form, prior_mean, prior_variance)
    likelihood = _likelihood(bound, labels, mask, weights)
    found = _alternate(prior, mean.detach(), likelihood, kappa, rounds, tolerance)
    return Ascent(*found)


def ascend_around(
    phi: Tensor,
    labels: Tensor,
    mean: Tensor,
    family: ModuleType,
    spread: Any,
    bound: Bound,
    *,
    kappa: float = 1.0,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    rounds: int = 50,
    tolerance: float = 1e-6,
) -> AscentAround:
    """Do the same with an earlier posterior for the prior: its update by new rows.

        max over q of the family  Σ_n ω_n b(μ_n, v_n; y_n) − κ KL(q ‖ q_old)

    Args:
        phi: features of the new rows, ``(N, D)``.
        labels: class indices, ``(N,)``.
        mean: mean of the earlier posterior, ``(K, D)``.
        family: the module of its family, which has independent classes.
        spread: its spread.
        bound: one of `posterior.bounds`.
        kappa: weight κ of the KL, with which the earlier posterior came about, too.
        weights: factors ω on the rows, ``(N,)``.
        mask: which classes exist for a row, bool ``(N, K)``.
        rounds: the most rounds.
        tolerance: stop when a round adds less than this per row, in nats.

    Returns:
        Mean, spread and the bound after every round.

    Source: Broderick et al., Streaming variational Bayes (arXiv 1307.6769), for the recursion.
    """
    prior = Earlier(phi, mean.detach(), family, spread)
    likelihood = _likelihood(bound, labels, mask, weights)
    start = torch.zeros_like(prior.mean)
    u, found, bounds = _alternate(prior, start, likelihood, kappa, rounds, tolerance)
    return AscentAround(prior.mean + family.unwhiten(spread, u), found, bounds)


def _likelihood(
    bound: Bound, labels: Tensor, mask: Tensor | None, weights: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    def likelihood(mu: Tensor, var: Tensor) -> Tensor:
        rows = bound(mu, var, labels, mask)
        return rows.sum() if weights is None else weights @ rows

    return likelihood


def _alternate(
    prior: Prior,
    at: Tensor,
    likelihood: Callable[[Tensor, Tensor], Tensor],
    kappa: float,
    rounds: int,
    tolerance: float,
) -> tuple[Tensor, Any, tuple[float, ...]]:
    """Return the mean's coordinates, the covariance and the bounds of coordinate ascent."""

    def objective(at: Tensor, c: Tensor, now: Any) -> float:
        expected = likelihood(prior.logits(at), prior.variance(now))
        return float(expected - kappa * prior.divergence(at, c, now))

    def goal(at: Tensor, var: Tensor) -> Tensor:
        with torch.enable_grad():
            var = var.detach().requires_grad_()
            (slope,) = torch.autograd.grad(likelihood(prior.logits(at), var), var)
        return (-2 / kappa) * slope  # (N, K)

    with torch.no_grad():
        c = goal(at, torch.full_like(prior.logits(at), _SMALL))
        now = prior.covariance(c)
        found = [objective(at, c, now)]
        for _ in range(rounds):
            var = prior.variance(now)

            def fit(mu: Tensor, var: Tensor = var) -> Tensor:
                return likelihood(mu, var) / kappa

            moved = prior.best(at, fit)
            reached = objective(moved, c, now)
            if reached >= found[-1]:
                at = moved
            else:
                reached = found[-1]
            target = goal(at, var)
            # The fixed point may overshoot; somewhere on the way to it the bound is higher.
            for halving in range(_HALVINGS):
                tried = torch.lerp(c, target, 0.5**halving)
                there = prior.covariance(tried)
                value = objective(at, tried, there)
                if value >= reached:
                    c, now, reached = tried, there, value
                    break
            found.append(reached)
            if found[-1] - found[-2] < tolerance * len(prior.phi):
                break
    return at, now, tuple(found)
