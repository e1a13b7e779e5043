"""Leading principal axes of features, in which they have unit variance, and what is left over.

    x = Λ^-½ Vᵀ(φ − c),   r² = ‖φ − c‖² − ‖Vᵀ(φ − c)‖²

V holds the leading eigenvectors of the features' covariance and Λ their eigenvalues. What lies off
these axes counts as isotropic with one variance ρ, the mean of the eigenvalues left out, so that a
density of x is one of φ, too (probabilistic principal components).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bayestune.errors import NumericsError

#: Rows that an axis needs: from fewer its variance is underestimated, above all for a few hundred.
ROWS_PER_AXIS = 4
#: Axes whose share of the largest variance is below this are rounding.
_RESOLUTION = 1e-6


class Projection(NamedTuple):
    """Where the axes are and what the features spread along and off them.

    Attributes:
        centre: mean c of the features, ``(D,)``.
        axes: orthonormal axes V in columns, ``(D, P)``.
        deviations: standard deviations √Λ along them, ``(P,)``.
        rest: variance ρ of each of the D − P directions left out, a scalar; 1 where there is none.
    """

    centre: Tensor
    axes: Tensor
    deviations: Tensor
    rest: Tensor


def measure(features: Tensor, most: int, least: int = 1) -> Projection:
    """Measure the leading principal axes of training features.

    P is ``most``, but no more than the features have directions, nor than a quarter of the rows
    where that is more than ``least``.

    Args:
        features: features, ``(N, D)``.
        most: the largest P.
        least: axes that are taken however few the rows.

    Returns:
        The projection, in the dtype of the features, from moments in float64 (float32 where the
        device has no other).

    Raises:
        NumericsError: the features are not finite or all equal.

    Source: Tipping and Bishop, Probabilistic principal component analysis (1999), section 3.2.
    """
    x = features if features.device.type == "mps" else features.double()
    centre = x.mean(0)
    x = x - centre
    if not torch.isfinite(x).all() or not x.any():
        raise NumericsError(
            "The features are all equal, NaN or infinite: they have no axes. Check the backbone."
        )
    N, D = x.shape
    if N < D:
        _, singular, rows = torch.linalg.svd(x, full_matrices=False)
        values, vectors = singular.square() / N, rows.T
    else:
        values, vectors = torch.linalg.eigh(x.T @ x / N)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    spread = int((values > _RESOLUTION * values[0]).sum())
    P = min(most, spread, max(least, N // ROWS_PER_AXIS))
    rest = torch.ones_like(values[0])
    if D > P:  # directions in which nothing varies count like the last axis
        rest = values[P:].sum() / (D - P) if spread > P else values[P - 1]
    parts = (centre, vectors[:, :P], values[:P].sqrt(), rest)
    return Projection(*(part.to(features.dtype).contiguous() for part in parts))


def project(phi: Tensor, projection: Projection) -> Tensor:
    """Return features ``(..., D)`` in the axes, of unit variance each, ``(..., P)``."""
    return (phi - projection.centre) @ projection.axes / projection.deviations


def log_rest(phi: Tensor, projection: Projection) -> Tensor:
    """Return what a log density of x lacks to be one of φ: the directions off the axes and scale.

        −½ r²/ρ − ½ (D − P) log 2πρ − ½ Σ log Λ

    Args:
        phi: features, ``(B, D)``.
        projection: the axes.

    Returns:
        Nats, ``(B,)``.
    """
    around = phi - projection.centre
    # The difference of the squares would cancel close to the axes.
    off = around - (around @ projection.axes) @ projection.axes.T  # (B, D)
    left = phi.shape[-1] - projection.axes.shape[1]
    scale = 0.5 * left * (math.log(2 * math.pi) + projection.rest.log())
    return -0.5 * off.square().sum(-1) / projection.rest - scale - projection.deviations.log().sum()
