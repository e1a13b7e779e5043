"""What the posterior of a last layer starts from: nothing but a scale, or earlier rows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from bayestune.posterior import dense, diagonal, eigen, subspace
from bayestune.posterior.laplace import Block, Diagonal, Eigen, Span
from bayestune.posterior.mode import basis_of, mode, mode_around

_KL = {Diagonal: diagonal.kl, Eigen: eigen.kl, Block: dense.kl, Span: subspace.kl}


class Prior(Protocol):
    """What a bound is taken against; ``at`` is the mean in coordinates of its own."""

    phi: Tensor

    def logits(self, at: Tensor) -> Tensor:
        """Return the rows' logits ``(N, K)`` at a mean."""
        ...

    def covariance(self, c: Tensor) -> Any:
        """Return the covariance after rows of curvatures ``(N, K)``."""
        ...

    def variance(self, now: Any) -> Tensor:
        """Return the rows' logit variances ``(N, K)`` under it."""
        ...

    def divergence(self, at: Tensor, c: Tensor, now: Any) -> Tensor:
        """Return KL(q ‖ prior) in nats, of a mean and of the covariance that c led to."""
        ...

    def best(self, at: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean that maximises a concave fit of the logits less the divergence."""
        ...


class Isotropic:
    """N(M₀, σ₀² I); the covariance is in one of the forms of a Laplace posterior."""

    def __init__(self, phi: Tensor, form: Any, mean: Tensor, variance: Tensor) -> None:
        self.phi, self.form, self.mean, self.prior_variance = phi, form, mean, variance
        self.precision = 1 / float(variance)
        self.rotation = basis_of(phi)

    def logits(self, at: Tensor) -> Tensor:
        return self.phi @ at.T

    def covariance(self, c: Tensor) -> Diagonal | Eigen | Block | Span:
        basis = self.rotation[1]
        if self.form is Eigen:
            return Eigen(c.T @ (self.phi @ basis).square(), basis)
        return self.form.of(self.phi, c)

    def variance(self, now: Any) -> Tensor:
        return now.variance(self.phi, self.precision)

    def divergence(self, at: Tensor, c: Tensor, now: Any) -> Tensor:
        spread = now.spread(self.precision)
        return _KL[self.form](at, spread, self.mean, self.prior_variance)

    def best(self, at: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        return mode(self.phi, at, self.mean, self.precision, fit, basis=self.rotation)


class Earlier:
    """An earlier posterior of a family, M + L u with u standard normal."""

    def __init__(self, phi: Tensor, mean: Tensor, family: ModuleType, spread: Any) -> None:
        self.phi, self.mean, self.family, self.spread = phi, mean, family, spread
        self.known = phi @ mean.T  # (N, K)
        self.log_determinant = family.log_determinant(spread)
        self.latest: Any = None

    def logits(self, at: Tensor) -> Tensor:
        return self.known + self.phi @ self.family.unwhiten(self.spread, at).T

    def covariance(self, c: Tensor) -> Any:
        self.latest = self.family.absorb(self.spread, self.phi, c, self.latest)
        return self.latest

    def variance(self, now: Any) -> Tensor:
        return self.family.logit_moments(self.phi, self.mean, now)[1]

    def divergence(self, at: Tensor, c: Tensor, now: Any) -> Tensor:
        # S is nearest to (S_old⁻¹ + Σ c φφᵀ)⁻¹ in a family that scales, so that
        # Σ_k tr(S_old,k⁻¹ S_k) = KD − Σ_nk c_nk v_nk and no inverse is needed.
        shrunk = self.log_determinant - self.family.log_determinant(now)
        return 0.5 * (at.square().sum() - (c * self.variance(now)).sum() + shrunk)

    def best(self, at: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        def unwhiten(u: Tensor) -> Tensor:
            return self.family.unwhiten(self.spread, u)

        return mode_around(self.phi, at, self.mean, unwhiten, fit)
