"""Laplace posteriors of a linear softmax layer: the curvature G plus the prior's precision τ.

    S = (G + τ I)⁻¹

in forms that keep more or less of G. Each is decomposed once and serves every τ, but for `Given`,
which has one τ for every weight. What a form leaves out of G it adds to the variance:
without the coupling of classes (all but `Full` and `Kronecker`) the difference of two logits gets
up to twice the variance that it has under the whole of G.

`Diagonal`, `Eigen` and `Block` take the curvature c_nk of each row in each of its logits alone,
p(1 − p) for Laplace (`curvature.bernoulli`); with another c they are the covariances that maximise
an evidence lower bound, see `posterior.ascent`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.errors import ConfigError, NumericsError
from bayestune.posterior import curvature, dense, eigen, joint, subspace


@dataclass(frozen=True)
class Diagonal:
    """The exact diagonal of G.

    Attributes:
        values: Σ_n c_nk φ_nd², ``(K, D)``.
    """

    values: Tensor

    @classmethod
    def of(cls, phi: Tensor, own: Tensor) -> Diagonal:
        """Measure it on features ``(N, D)`` whose rows have curvatures c ``(N, K)``."""
        return cls(own.T @ phi.square())

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return logit variances v_k = Σ_d φ_d² / (values_kd + τ), ``(B, K)``."""
        return phi.square() @ self.spread(precision).square().T

    def spread(self, precision: float) -> Tensor:
        """Return standard deviations for `posterior.diagonal`, ``(K, D)``."""
        return _deviations(self.values, precision)


@dataclass(frozen=True)
class Eigen:
    """The diagonal of every class block in one basis, the eigenvectors of Σ_nk c_nk φ_nφ_nᵀ.

    Between the diagonal and the blocks: features that vary together share one basis, K classes cost
    KD + D² numbers, and where all rows predict alike it is the blocks exactly.

    Attributes:
        values: Σ_n c_nk (Qᵀφ_n)_d², ``(K, D)``.
        basis: eigenvectors Q in columns, ``(D, D)``.
    """

    values: Tensor
    basis: Tensor

    @classmethod
    def of(cls, phi: Tensor, own: Tensor) -> Eigen:
        """Measure it on features ``(N, D)`` whose rows have curvatures c ``(N, K)``."""
        pooled = (phi.double() * own.double().sum(1, keepdim=True)).T @ phi.double()
        basis = _eigh(pooled)[1].to(phi).contiguous()
        return cls(own.T @ (phi @ basis).square(), basis)

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return logit variances v_k = Σ_d (Qᵀφ)_d² / (values_kd + τ), ``(B, K)``."""
        return (phi @ self.basis).square() @ self.spread(precision).scale.square().T

    def spread(self, precision: float) -> eigen.Spread:
        """Return the posterior's spread in the basis."""
        return eigen.Spread(_deviations(self.values, precision), self.basis)


@dataclass(frozen=True)
class Block:
    """The class blocks Σ_n c_nk φ_nφ_nᵀ = Q_k diag(λ_k) Q_kᵀ.

    Attributes:
        values: eigenvalues λ, ascending, ``(K, D)``.
        vectors: eigenvectors Q in columns, ``(K, D, D)``.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, phi: Tensor, own: Tensor) -> Block:
        """Measure it on features ``(N, D)`` whose rows have curvatures c ``(N, K)``."""
        vectors = curvature.block(phi, own)
        values = vectors.new_empty(vectors.shape[:2])
        for k, A in enumerate(vectors):
            values[k], vectors[k] = _eigh(A)
        return cls(values, vectors)

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return logit variances v_k = Σ_d (Q_kᵀφ)_d² / (λ_kd + τ), ``(B, K)``."""
        inverse = _deviations(self.values, precision).square()
        per_class = zip(self.vectors, inverse, strict=True)
        return torch.stack([(phi @ Q).square() @ s for Q, s in per_class], dim=-1)

    def spread(self, precision: float) -> Tensor:
        """Return covariance factors Q_k diag(λ_k + τ)^-½ for `posterior.dense`, ``(K, D, D)``."""
        return self.vectors * _deviations(self.values, precision).unsqueeze(1)


@dataclass(frozen=True)
class Given:
    """Class blocks at one prior precision for every weight, S_k = (Σ_n c_nk φφᵀ + diag τ_k)⁻¹.

    Attributes:
        factor: factors of the S_k, upper triangular, ``(K, D, D)``.
    """

    factor: Tensor

    @classmethod
    def of(cls, phi: Tensor, own: Tensor, precision: Tensor) -> Given:
        """Measure it on features ``(N, D)`` with curvatures ``(N, K)`` at precisions ``(K, D)``."""
        factor = curvature.block(phi, own)
        eye = torch.eye(phi.shape[1], dtype=torch.float64, device=phi.device)
        for k, A in enumerate(factor):
            root, failed = torch.linalg.cholesky_ex(A.double() + precision[k].double().diag())
            if failed:
                raise NumericsError(
                    f"The curvature of class {k} plus its prior precision is not positive "
                    "definite. Check the features for infinities."
                )
            factor[k] = torch.linalg.solve_triangular(root, eye, upper=False).T
        return cls(factor)

    def variance(self, phi: Tensor, precision: float = 1.0) -> Tensor:
        """Return logit variances v_k = ‖L_kᵀφ‖², ``(B, K)``; the precision is already in it."""
        return dense.logit_moments(phi, phi.new_zeros(1, phi.shape[1]), self.factor)[1]

    def spread(self, precision: float = 1.0) -> Tensor:
        """Return covariance factors for `posterior.dense`, ``(K, D, D)``."""
        return self.factor


@dataclass(frozen=True)
class Span:
    """The class blocks where rows are fewer than features: all that they say lies in their span.

    Attributes:
        block: the blocks within the span.
        basis: orthonormal columns V of the span, ``(D, R)``.
    """

    block: Block
    basis: Tensor

    @classmethod
    def of(cls, phi: Tensor, own: Tensor) -> Span:
        """Measure it on features ``(N, D)`` whose rows have curvatures c ``(N, K)``."""
        values, rows = _eigh(phi.double() @ phi.double().T)
        kept = values > values.max() * torch.finfo(torch.float32).eps
        basis = (phi.double().T @ rows[:, kept] / values[kept].sqrt()).to(phi).contiguous()
        return cls(Block.of(phi @ basis, own), basis)

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return the logit variances of the block plus those of the prior outside, ``(B, K)``."""
        inside = phi @ self.basis  # (B, R)
        beyond = subspace.outside(phi, inside) / precision
        return self.block.variance(inside, precision) + beyond.unsqueeze(-1)

    def spread(self, precision: float) -> subspace.Spread:
        """Return the posterior's spread for `posterior.subspace`."""
        factor = self.block.spread(precision)
        return subspace.Spread(factor, self.basis, self.basis.new_tensor(precision**-0.5))


@dataclass(frozen=True)
class Kronecker:
    """G ≈ B ⊗ A, classes coupled, in the eigenbases of both factors.

    Attributes:
        values: products of eigenvalues β_i α_d, ``(K, D)``.
        basis: eigenvectors of A in columns, ``(D, D)``.
        classes: eigenvectors of B in columns, ``(K, K)``.
    """

    values: Tensor
    basis: Tensor
    classes: Tensor

    @classmethod
    def of(cls, phi: Tensor, probs: Tensor, weights: Tensor | None = None) -> Kronecker:
        """Measure it on features ``(N, D)`` at predictions ``(N, K)``, weighed by ``(N,)``."""
        return cls._product(*curvature.kronecker(phi, probs, weights))

    @classmethod
    def of_two(cls, phi: Tensor, own: Tensor) -> Kronecker:
        """Measure the whole of G for two classes, whose curvature is that of their difference.

            G = [[1, −1], [−1, 1]] ⊗ Σ_n c_n φ_nφ_nᵀ

        Args:
            phi: features, ``(N, D)``.
            own: curvatures c of the rows, ``(N, 2)``, alike for both classes.
        """
        contrast = phi.new_tensor([[1.0, -1.0], [-1.0, 1.0]])
        return cls._product(contrast, curvature.block(phi, own[:, :1])[0])

    @classmethod
    def _product(cls, B: Tensor, A: Tensor) -> Kronecker:
        (beta, classes), (alpha, basis) = _eigh(B), _eigh(A)
        return cls(beta[:, None] * alpha, basis.contiguous(), classes.contiguous())

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return logit covariances ``(B, K, K)`` of features ``(B, D)``."""
        return eigen.logit_covariance(phi, self.spread(precision))

    def spread(self, precision: float) -> eigen.Spread:
        """Return the posterior's spread in the bases."""
        return eigen.Spread(_deviations(self.values, precision), self.basis, self.classes)


@dataclass(frozen=True)
class Full:
    """The whole of G = Q diag(λ) Qᵀ, for KD up to a few thousand.

    Attributes:
        values: eigenvalues λ, ascending, ``(K·D,)``.
        vectors: eigenvectors Q in columns, ``(K·D, K·D)``.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, phi: Tensor, probs: Tensor, weights: Tensor | None = None) -> Full:
        """Measure it on features ``(N, D)`` at predictions ``(N, K)``, weighed by ``(N,)``."""
        return cls(*_eigh(curvature.full(phi, probs, weights)))

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return logit covariances ``(B, K, K)`` of features ``(B, D)``."""
        return joint.logit_covariance(phi, self.spread(precision))

    def spread(self, precision: float) -> Tensor:
        """Return the covariance factor Q diag(λ + τ)^-½ for `posterior.joint`, ``(K·D, K·D)``."""
        return self.vectors * _deviations(self.values, precision)


Form = Diagonal | Eigen | Block | Given | Span | Kronecker | Full


def _eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose a curvature in float64; what is below zero is rounding."""
    if not torch.isfinite(A).all():
        raise NumericsError(
            "The curvature of the training likelihood is not finite. Check the features for NaN "
            "and infinities."
        )
    values, vectors = torch.linalg.eigh(A.double())
    return values.clamp_min(0).to(A), vectors.to(A)


def _deviations(values: Tensor, precision: float) -> Tensor:
    if not 0 < precision < math.inf:
        raise ConfigError(f"The prior precision is {precision!r}; it must be positive and finite.")
    return (values + precision).rsqrt()
