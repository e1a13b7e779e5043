"""The Kronecker factors of one site's curvature, from the rows' own derivatives.

The generalised Gauss-Newton matrix of a site is Σ_m vec(J_m) vec(J_m)ᵀ, where the J_m ``(out, in)``
are the derivatives of the rows' logits along the square root of the softmax's curvature. Here

    Σ_m vec(J_m) vec(J_m)ᵀ ≈ G ⊗ A,   G = Σ_m J_m J_mᵀ / t,   A = Σ_m J_mᵀ J_m,   t = Σ_m ‖J_m‖²

which is a sum over the rows, has the trace of what it stands for, and is one step of the power
iteration for the nearest Kronecker product. With one position per row, J = g aᵀ, and g unrelated to
a it is the classic KFAC. With many, KFAC-expand takes positions for rows and KFAC-reduce takes
(Σ_t g_t)(mean_t a_t)ᵀ for Σ_t g_t a_tᵀ; as the derivatives of whole rows are at hand (a prediction
needs them too), neither is needed.

Source: Martens and Grosse 2015 (arXiv 1503.05671); Eschenhagen et al. 2023 (arXiv 2311.00636) for
expand and reduce; Morwani et al. 2024 (arXiv 2406.17748), section 3, for the factors used here.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bayestune.posterior.sketch import Sketch


class Factors(NamedTuple):
    """``G ⊗ A ≈ Σ_ij λ_ij (u_i ⊗ w_j)(u_i ⊗ w_j)ᵀ``; beyond the columns there is no curvature.

    Attributes:
        values: λ, ``(R_out, R_in)``.
        outputs: u in columns, ``(out, R_out)``.
        inputs: w in columns, ``(in, R_in)``.
    """

    values: Tensor
    outputs: Tensor
    inputs: Tensor


def ranks(weight: Tensor, columns: int) -> tuple[int, int]:
    """Return how many columns ``(R_out, R_in)`` are kept: all of them on the smaller side.

    Args:
        weight: ``(out, in)``.
        columns: most of them on the larger side.
    """
    out, into = weight.shape
    return (out if out <= into else min(out, columns)), (
        into if into <= out else min(into, columns)
    )


class SiteCurvature:
    """Collects the Kronecker factors of one site.

    Args:
        like: gives shape ``(out, in)``, dtype and device.
        columns: most eigenvectors of the larger factor.
    """

    def __init__(self, like: Tensor, columns: int) -> None:
        self.sides = [
            Sketch(size, None if rank == size else rank, like)
            for size, rank in zip(like.shape, ranks(like, columns), strict=True)
        ]
        self.trace = like.new_zeros(())

    def add(self, J: Tensor) -> None:
        """Take in derivatives ``(B, out, in)``."""
        outputs, inputs = self.sides
        outputs.add(J.mT.flatten(0, 1))  # (B · in, out)
        inputs.add(J.flatten(0, 1))  # (B · out, in)
        self.trace += J.square().sum()

    def factors(self) -> Factors:
        """Return eigenvalues and eigenvectors, in float64 on the CPU."""
        (of_outputs, u), (of_inputs, w) = (side.leading() for side in self.sides)
        trace = self.trace.cpu().double()
        values = of_outputs[:, None] * of_inputs / trace.clamp_min(1e-300)  # without rows, zeros
        return Factors(values, u, w)


def projected(J: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return what the curvature sees of derivatives, and the inner products of what it does not.

    Args:
        J: derivatives of K logits, ``(B, K, out, in)``.
        factors: eigenvectors.

    Returns:
        ``uᵀ J w`` ``(B, K, R_out, R_in)``, and inner products of the rest ``(B, K, K)``.
    """
    _, u, w = factors
    inside = u.mT @ J @ w  # (B, K, R_out, R_in)
    if u.shape[0] == u.shape[1] and w.shape[0] == w.shape[1]:
        return inside, J.new_zeros(*J.shape[:2], J.shape[1])
    # A difference of squared lengths would lose its digits, and could be negative.
    rest = (J - u @ inside @ w.mT).flatten(2)  # (B, K, out · in)
    return inside, rest @ rest.mT


def covariance(inside: Tensor, rest: Tensor, factors: Factors, precision: Tensor) -> Tensor:
    """Return a site's part of the covariance of the logits, ``J (G ⊗ A + τI)⁻¹ Jᵀ``, ``(B, K, K)``.

    Args:
        inside: what `projected` returned first, ``(B, K, R_out, R_in)``.
        rest: and second, ``(B, K, K)``.
        factors: eigenvalues.
        precision: τ, a scalar; infinite for a point.
    """
    scaled = (inside * (factors.values + precision).rsqrt()).flatten(2)  # (B, K, R_out · R_in)
    return scaled @ scaled.mT + rest / precision
