"""Bayesian linear regression in closed form: the posterior of the last layer given its features.

    y = Φw + ε,   ε_n ~ N(0, σ²/r_n),   w ~ N(0, τ⁻¹ I)

With A = Σ_n r_n φ_n φ_nᵀ = Q diag(λ) Qᵀ, measured once, every σ and τ costs O(D). Row weights r
stand for what a noise model knows about single rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearRegression:
    """Sufficient statistics of N rows in the eigenbasis of their weighted second moment.

    Attributes:
        count: number of rows N.
        values: eigenvalues λ, ``(D,)``.
        basis: eigenvectors Q in columns, ``(D, D)``.
        moment: c = QᵀΣ_n r_n y_n φ_n, ``(D,)``.
        square: Σ_n r_n y_n², a scalar.
        log_weights: Σ_n log r_n, a scalar.
    """

    count: int
    values: Tensor
    basis: Tensor
    moment: Tensor
    square: Tensor
    log_weights: Tensor

    @classmethod
    def of(cls, phi: Tensor, y: Tensor, weights: Tensor | None = None) -> LinearRegression:
        """Measure rows, in float64.

        Args:
            phi: features, ``(N, D)``.
            y: numbers, ``(N,)``.
            weights: relative precisions r of the rows, ``(N,)``; ones where absent.
        """
        phi, y = phi.double(), y.double()
        r = torch.ones_like(y) if weights is None else weights.double()
        values, basis = torch.linalg.eigh((phi * r[:, None]).T @ phi)
        # A second moment is positive semi-definite: what is below zero is rounding.
        return cls(
            len(y),
            values.clamp_min(0),
            basis,
            basis.T @ ((r * y) @ phi),
            (r * y.square()).sum(),
            r.log().sum(),
        )

    def mean(self, noise: float, precision: float) -> Tensor:
        """Return the posterior mean (A + σ²τ I)⁻¹ Σ_n r_n y_n φ_n, ``(D,)``.

        Args:
            noise: standard deviation σ.
            precision: prior precision τ.
        """
        return self.basis @ (self.moment / (self.values + noise**2 * precision))

    def scale(self, noise: float, precision: float) -> Tensor:
        """Return the posterior's standard deviations in the basis, (λ/σ² + τ)^-½, ``(D,)``."""
        return (self.values / noise**2 + precision).rsqrt()

    def diagonal_scale(self, noise: float, precision: float) -> Tensor:
        """Return those of the best diagonal posterior, (A_dd/σ² + τ)^-½, ``(D,)``."""
        diagonal = self.basis.square() @ self.values
        return (diagonal / noise**2 + precision).rsqrt()

    def log_evidence(self, noise: float, precision: float) -> Tensor:
        """Return the log marginal likelihood log p(y | Φ, σ, τ) in nats, a scalar.

            −½ [ N log 2πσ² − Σ_n log r_n + Σ_d log(1 + λ_d/(σ²τ))
                 + (Σ_n r_n y_n² − Σ_d c_d²/(λ_d + σ²τ)) / σ² ]

        Args:
            noise: standard deviation σ.
            precision: prior precision τ.

        Source: Bishop, Pattern recognition and machine learning (2006), section 3.5.1.
        """
        ridge = noise**2 * precision
        spent = self.square - (self.moment.square() / (self.values + ridge)).sum()
        volume = torch.log1p(self.values / ridge).sum() - self.log_weights
        return -0.5 * (self.count * math.log(2 * math.pi * noise**2) + volume + spent / noise**2)


def updated_mean(phi: Tensor, y: Tensor, precision: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """Return the posterior mean of a linear regression with any Gaussian prior; exact.

        (S⁻¹ + Σ_n λ_n φφᵀ)⁻¹ (S⁻¹m + Σ_n λ_n y_n φ_n) = m + L (I + BᵀB)⁻¹ Bᵀ √λ (y − Φm)

    with S = L Lᵀ and B = diag(√λ) Φ L, by a system of as many equations as there are rows or
    features, whichever are fewer.

    Args:
        phi: features, ``(N, D)``.
        y: numbers, ``(N,)``.
        precision: λ, the precision of the noise of each row, ``(N,)``.
        mean: prior mean m, ``(D,)``.
        root: any square root L of the prior covariance, ``(D, D)``.

    Returns:
        The mean, ``(D,)``.

    Source: Bishop, Pattern recognition and machine learning (2006), section 3.3.1.
    """
    weight = precision.sqrt()
    B, residual = weight[:, None] * (phi @ root), weight * (y - phi @ mean)
    rows = len(B) < B.shape[1]
    gram = B @ B.T if rows else B.T @ B
    system = torch.eye(len(gram), dtype=B.dtype, device=B.device) + gram
    factor = torch.linalg.cholesky(system)
    if rows:
        solved = torch.cholesky_solve(residual[:, None], factor)  # (N, 1)
        return mean + root @ (B.T @ solved).squeeze(1)
    return mean + root @ torch.cholesky_solve(B.T @ residual[:, None], factor).squeeze(1)
