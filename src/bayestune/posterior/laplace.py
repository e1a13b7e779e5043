"""Laplace (generalised Gauss-Newton) posterior of a linear softmax layer from features.

With point predictions p_n = softmax(W*φ_n) the curvature of the negative log likelihood in vec W is

    G = Σ_n (diag p_n − p_n p_nᵀ) ⊗ φ_n φ_nᵀ,        precision P = G + τ I

always a *sum* over the training set, so that τ keeps its meaning as the precision of the prior.
The class-block form keeps the K diagonal blocks Σ_n p_nk(1 − p_nk) φ_n φ_nᵀ and drops what couples
the classes: at K = 2 the logit difference then gets up to twice its variance under the full G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.errors import ConfigError, NumericsError


def block_curvature(
    phi: Tensor, probs: Tensor, weights: Tensor | None = None, chunk: int = 4096
) -> Tensor:
    """Return the class blocks A_k = Σ_n ω_n p_nk(1 − p_nk) φ_n φ_nᵀ of the curvature.

    Args:
        phi: features, ``(N, D)``.
        probs: point predictions, ``(N, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.
        chunk: rows handled at once, which bounds the memory beside the result.

    Returns:
        The blocks, ``(K, D, D)``.
    """
    bernoulli = _bernoulli(probs, weights)
    blocks = phi.new_zeros(probs.shape[1], phi.shape[1], phi.shape[1])
    for rows, variance in zip(phi.split(chunk), bernoulli.split(chunk), strict=True):
        for k, block in enumerate(blocks):
            block.addmm_(rows.T, variance[:, k, None] * rows)
    return blocks


def diagonal_curvature(phi: Tensor, probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the exact diagonal Σ_n ω_n p_nk(1 − p_nk) φ_nd² of the curvature.

    Args:
        phi: features, ``(N, D)``.
        probs: point predictions, ``(N, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.

    Returns:
        The diagonal, ``(K, D)``.
    """
    return _bernoulli(probs, weights).T @ phi.square()


def full_curvature(phi: Tensor, probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the full curvature Σ_n ω_n (diag p_n − p_n p_nᵀ) ⊗ φ_n φ_nᵀ, for small problems.

    Args:
        phi: features, ``(N, D)``.
        probs: point predictions, ``(N, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.

    Returns:
        The curvature in vec W, rows of W one after the other, ``(K·D, K·D)``.
    """
    covariance = torch.diag_embed(probs) - probs.unsqueeze(2) * probs.unsqueeze(1)  # (N, K, K)
    if weights is not None:
        covariance = covariance * weights[:, None, None]
    size = probs.shape[1] * phi.shape[1]
    return torch.einsum("nkl,ni,nj->kilj", covariance, phi, phi).reshape(size, size)  # (KD, KD)


def refresh_block(curvature: Tensor, precision: float) -> Tensor:
    """Return covariance factors of the class-block Laplace posterior, for `posterior.dense`.

        A_k + τI = C Cᵀ,   L_k = C⁻ᵀ,   L_k L_kᵀ = (A_k + τI)⁻¹

    Args:
        curvature: class blocks, ``(K, D, D)``.
        precision: precision τ of the prior, in the units of 1/weight².

    Returns:
        The factors, upper triangular, ``(K, D, D)``, in the dtype of ``curvature``.

    Raises:
        NumericsError: a block plus τI is not positive definite.
    """
    _require_positive(precision)
    eye = torch.eye(curvature.shape[-1], dtype=torch.float64, device=curvature.device)
    factors = torch.empty_like(curvature)
    for k, block in enumerate(curvature):
        root, failed = torch.linalg.cholesky_ex(block.double() + precision * eye)
        if failed:
            raise NumericsError(
                f"The curvature of class {k} plus a precision of {precision:g} is not positive "
                "definite. Check the features for infinities, or raise the precision."
            )
        factors[k] = torch.linalg.solve_triangular(root, eye, upper=False).T
    return factors


def refresh_diagonal(curvature: Tensor, precision: float) -> Tensor:
    """Return standard deviations (G_kd + τ)^-½ of the diagonal Laplace posterior.

    Args:
        curvature: diagonal curvature, ``(K, D)``.
        precision: precision τ of the prior, in the units of 1/weight².

    Returns:
        Standard deviations for `posterior.diagonal`, ``(K, D)``.
    """
    _require_positive(precision)
    return (curvature + precision).rsqrt()


@dataclass(frozen=True)
class BlockSpectrum:
    """Eigendecomposition of the class blocks: one per class serves every prior precision.

    Attributes:
        values: eigenvalues λ, ascending, ``(K, D)``.
        vectors: eigenvectors Q in columns, ``(K, D, D)``.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, curvature: Tensor) -> BlockSpectrum:
        """Decompose A_k = Q_k diag(λ_k) Q_kᵀ for class blocks ``(K, D, D)``."""
        values, vectors = curvature.new_empty(curvature.shape[:2]), torch.empty_like(curvature)
        for k, block in enumerate(curvature):
            values[k], vectors[k] = torch.linalg.eigh(block.double())
        # The blocks are positive semi-definite: what is below zero is rounding.
        return cls(values.clamp_min(0), vectors)

    def variance(self, phi: Tensor, precision: float | Tensor) -> Tensor:
        """Return logit variances v_k = Σ_i (Q_kᵀφ)_i² / (λ_ki + τ).

        Args:
            phi: features, ``(B, D)``.
            precision: one τ, or ``(T,)`` of them to share the projections.

        Returns:
            Variances, ``(B, K)``, or ``(T, B, K)`` for ``(T,)`` precisions.
        """
        tau = torch.as_tensor(precision, dtype=phi.dtype, device=phi.device)
        per_class = [
            (phi @ Q).square() @ (values[:, None] + tau.reshape(1, -1)).reciprocal()  # (B, T)
            for values, Q in zip(self.values, self.vectors, strict=True)
        ]
        variance = torch.stack(per_class, dim=-1).transpose(0, 1)  # (T, B, K)
        return variance if tau.ndim else variance[0]

    def factor(self, precision: float) -> Tensor:
        """Return covariance factors Q_k diag(λ_k + τ)^-½ for `posterior.dense`, ``(K, D, D)``."""
        _require_positive(precision)
        return self.vectors * (self.values + precision).rsqrt().unsqueeze(1)


@dataclass(frozen=True)
class EigenCurvature:
    """The diagonal of every class block in one basis, the eigenvectors of Σ_n ω_n (1 − ‖p_n‖²) φφᵀ.

    Between the diagonal and the blocks: features that vary together share one basis, K classes cost
    KD + D² numbers, and where all rows predict alike it is the blocks exactly.

    Attributes:
        values: Σ_n ω_n p_nk (1 − p_nk) (Qᵀφ_n)_d², ``(K, D)``.
        basis: eigenvectors Q in columns, ``(D, D)``.
    """

    values: Tensor
    basis: Tensor

    @classmethod
    def of(cls, phi: Tensor, probs: Tensor, weights: Tensor | None = None) -> EigenCurvature:
        """Measure the curvature of features ``(N, D)`` at predictions ``(N, K)``."""
        bernoulli = _bernoulli(probs, weights)
        pooled = (phi.double() * bernoulli.double().sum(1, keepdim=True)).T @ phi.double()
        basis = torch.linalg.eigh(pooled).eigenvectors.to(phi).contiguous()
        return cls(bernoulli.T @ (phi @ basis).square(), basis)

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return logit variances v_k = Σ_d (Qᵀφ)_d² / (values_kd + τ), ``(B, K)``."""
        return (phi @ self.basis).square() @ (self.values + precision).reciprocal().T

    def scale(self, precision: float) -> Tensor:
        """Return standard deviations (values + τ)^-½ in the basis, for `posterior.eigen`."""
        _require_positive(precision)
        return (self.values + precision).rsqrt()


def log_evidence(
    log_likelihood: float | Tensor,
    mean: Tensor,
    prior_mean: Tensor,
    eigenvalues: Tensor,
    precision: float | Tensor,
) -> Tensor:
    """Return the Laplace approximation of the log marginal likelihood of the training labels.

        log p(D) ≈ log p(D | W*) − ½ [ log det(G + τI) − KD log τ + τ ‖W* − M‖² ]

    It is exact where the log likelihood is quadratic and W* is the mode of the posterior at this τ.

    Args:
        log_likelihood: Σ_n log p(y_n | W*), summed over the training set.
        mean: the mode W*, ``(K, D)``.
        prior_mean: prior mean M, broadcastable to ``(K, D)``.
        eigenvalues: the KD eigenvalues of G in any shape; a diagonal curvature is its own.
        precision: one prior precision τ, or ``(T,)`` of them.

    Returns:
        Log evidence in nats, a scalar or ``(T,)``.

    Source: MacKay, The evidence framework applied to classification networks (1992).
    """
    tau = torch.as_tensor(precision, dtype=mean.dtype, device=mean.device)
    # log det(G + τI) − KD log τ, without the cancellation of the two.
    log_occam = torch.log1p(eigenvalues.reshape(-1) / tau.unsqueeze(-1)).sum(-1)
    return log_likelihood - 0.5 * (log_occam + tau * (mean - prior_mean).square().sum())


def _bernoulli(probs: Tensor, weights: Tensor | None) -> Tensor:
    variance = probs * (1 - probs)
    return variance if weights is None else variance * weights[:, None]


def _require_positive(precision: float) -> None:
    if not 0 < precision < float("inf"):
        raise ConfigError(f"The prior precision is {precision!r}; it must be positive and finite.")
