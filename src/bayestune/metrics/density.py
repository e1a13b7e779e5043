"""Density of features: how far a row lies from every class seen in training.

Gaussian classes with one shared covariance; the score needs no probabilities and is often the
strongest sign that a row is out-of-distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.metrics.inputs import ArrayLike, as_labels, as_tensor, check_count, same_rows

_BLOCK = 4096  # rows in float64 at once

# With λ of at least this the condition number is at most D / λ: harmless in float64.
SMALLEST_SHRINKAGE = 1e-6

# A spread below this share of the largest feature is rounding, not spread.
_RESOLUTION = 1e-10


@dataclass(frozen=True, eq=False)
class Density:
    """Class means and the inverse square root of the shared covariance of D features.

    Attributes:
        means: mean of each class, float64 (K, D); zeros for classes that are not present.
        whitening: W with ``W Wᵀ = Σ⁻¹``, float64 (D, D), so that ``(x - μ) W`` is white.
        present: whether the class had a row, bool (K,).
        counts: rows of each class, int64 (K,); None where unknown, so that no rows can be added.
        shrinkage: λ of the covariance, float64 scalar; None where unknown.
    """

    means: Tensor
    whitening: Tensor
    present: Tensor
    counts: Tensor | None = None
    shrinkage: Tensor | None = None

    def stored(self) -> Density:
        """Return the same in fp32 on the CPU."""
        rest = (None if t is None else t.cpu() for t in (self.counts, self.shrinkage))
        return Density(
            self.means.float().cpu(), self.whitening.float().cpu(), self.present.cpu(), *rest
        )

    @cached_property
    def _centred(self) -> tuple[Tensor, Tensor]:
        """The mean of the class means ``(D,)`` and the whitened means around it ``(k, D)``."""
        means = self.means.to(torch.float64)[self.present]
        centre = means.mean(0)
        return centre, (means - centre) @ self.whitening.to(torch.float64)


def fit_density(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    shrinkage: float | Literal["ledoit_wolf"] = "ledoit_wolf",
) -> Density:
    """Fit class means and one shrunk covariance of the rows around their class means.

    ``Σ = (1 - λ) S + λ (tr S / D) I`` with the pooled ``S = Σ_i z_i z_iᵀ / (n - k)``,
    ``z_i = x_i - μ_{y_i}``, over the n rows of the k classes that have two rows or more; a class
    with one row contributes its mean only, a class without rows is left out. Σ is positive definite
    also for N < D and for constant features.

    ``"ledoit_wolf"`` estimates the λ of least squared error from the rows themselves,

    ``λ = min(1, n/(n - k) · (Σ_i ‖z_i z_iᵀ - S'‖² / n²) / ‖S' - (tr S' / D) I‖²)``,

    ``S' = Σ_i z_i z_iᵀ / n`` and Frobenius norms; the factor n/(n - k) is for the degrees of
    freedom that the means take. λ is at least 1e-6.

    Where the rows do not spread around their class means at all (one row per class, or all rows of
    a class equal), Σ is the rows' mean square deviation from their overall mean, per feature, times
    I; if they are all equal, Σ = I: scores are then scaled Euclidean distances.

    The cost is O(N D² + D³), in float64 on the features' device.

    Args:
        features: finite features (N, D) of any float type.
        labels: class indices (N,).
        num_classes: number of classes K.
        shrinkage: ``"ledoit_wolf"``, or λ itself in [1e-6, 1].

    Returns:
        The density, float64 tensors on the features' device (on the CPU if that has no float64).

    Raises:
        DataError: if features are empty, not (N, D) or not finite, or labels are out of range.
        ConfigError: if ``num_classes`` or ``shrinkage`` is out of range.
        NumericsError: if the covariance overflows or cannot be factorised.

    Source: Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples",
    eq. 1; Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
    matrices", lemmas 3.2 to 3.4.
    """
    check_count(num_classes, "num_classes")
    _check_shrinkage(shrinkage)
    x = _as_features(features)
    y = as_labels(labels, num_classes)
    same_rows(x, y, "features", "labels")
    y = y.to(x.device)
    counts = torch.bincount(y, minlength=num_classes)  # (K,)
    means = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device)
    for block, of_row in _blocks(x, y):
        means.index_add_(0, of_row, block)
    means /= counts.clamp(min=1)[:, None]

    repeated = counts > 1
    n, k = int(counts[repeated].sum()), int(repeated.sum())
    second, fourth = _moments(x, y, means, repeated)
    # n ≥ 2 k, so n - k is 0 only where no class is repeated, and then so is the sum.
    covariance = second / max(n - k, 1)
    variance = covariance.diagonal().mean()
    if not bool(torch.isfinite(variance)):
        raise NumericsError(
            f"The variance of the features overflows (largest feature {x.abs().max().item():.3g}); "
            "rescale the features."
        )
    resolution = (_RESOLUTION * x.abs().max().item()) ** 2
    lam = 1.0 if shrinkage == "ledoit_wolf" else float(shrinkage)
    if variance.item() <= resolution:
        whitening = _isotropic(x, resolution)
    else:
        if shrinkage == "ledoit_wolf":
            lam = max(_ledoit_wolf(second, fourth, n, k), SMALLEST_SHRINKAGE)
        whitening = whiten((1 - lam) * covariance, lam * variance)
    return Density(means, whitening, counts > 0, counts, means.new_tensor(lam))


def density_score(density: Density, features: ArrayLike) -> Tensor:
    """Return the squared Mahalanobis distance to the nearest class mean, higher = more OOD.

    ``min_k ‖(x - μ_k) W‖²`` over the classes that are present.

    Args:
        density: what :func:`fit_density` returned.
        features: finite features (N, D) of any float type.

    Returns:
        float32 scores (N,) on the features' device (on the CPU if that has no float64), computed in
        float64; distances beyond the range of float32 become its largest number.

    Raises:
        DataError: if features are empty, not (N, D) with the density's D, or not finite.

    Source: Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples",
    eq. 2.
    """
    x = _as_features(features)
    if x.shape[1] != density.means.shape[1]:
        raise DataError(
            f"features: {x.shape[1]} columns given, the density was fitted on "
            f"{density.means.shape[1]}; score features of the same model and pooling."
        )
    # Around a common centre, so that a large offset does not cancel digits in the expansion below.
    centre, centres = (tensor.to(x.device) for tensor in density._centred)  # (D,), (k, D)
    whitening = density.whitening.to(x.device, torch.float64)
    largest = torch.finfo(torch.float32).max
    scores = []
    for block in x.split(_BLOCK):
        z = (block.to(torch.float64) - centre) @ whitening  # (b, D)
        squared = z.square().sum(1)[:, None] - 2 * z @ centres.T + centres.square().sum(1)
        # Features are finite, so a NaN can only be the difference of two overflows.
        nearest = torch.nan_to_num(squared, nan=torch.inf, neginf=torch.inf).amin(1)
        scores.append(nearest.clamp(0.0, largest).to(torch.float32))
    return torch.cat(scores)


def _check_shrinkage(shrinkage: float | str) -> None:
    if shrinkage == "ledoit_wolf":
        return
    if isinstance(shrinkage, str) or not SMALLEST_SHRINKAGE <= shrinkage <= 1:
        raise ConfigError(
            f"shrinkage = {shrinkage!r} given, expected 'ledoit_wolf' or a number from "
            f"{SMALLEST_SHRINKAGE:g} to 1."
        )


def _as_features(features: ArrayLike) -> Tensor:
    if isinstance(features, Tensor):
        # The one accelerator without float64; elsewhere the products run where the features are.
        x = features.detach().cpu() if features.device.type == "mps" else features.detach()
    else:
        x = as_tensor(features, "features", torch.float64)
    if x.ndim != 2 or x.shape[1] == 0 or x.is_complex():
        raise DataError(
            f"features: {x.dtype} of shape {tuple(x.shape)} given, expected real numbers (N, D)."
        )
    if x.shape[0] == 0:
        raise DataError("features: no rows given, expected at least one.")
    finite = torch.isfinite(x).all(1)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        raise DataError(f"features: row {row} has a NaN or infinite entry, expected finite ones.")
    return x


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for block, of_row in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        yield block.to(torch.float64), of_row


def _moments(x: Tensor, y: Tensor, means: Tensor, repeated: Tensor) -> tuple[Tensor, float]:
    """Return ``Σ_i z_i z_iᵀ`` (D, D) and ``Σ_i ‖z_i‖⁴`` over the rows of repeated classes."""
    second = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    fourth = 0.0
    for block, of_row in _blocks(x, y):
        z = (block - means[of_row])[repeated[of_row]]
        second.addmm_(z.T, z)
        fourth += z.square().sum(1).square().sum().item()
    return second, fourth


def _ledoit_wolf(second: Tensor, fourth: float, n: int, k: int) -> float:
    S = second / n
    noise = max(fourth / n - S.square().sum().item(), 0.0) / n
    off_target = S.clone()
    off_target.diagonal().sub_(S.diagonal().mean())
    distance = off_target.square().sum().item()
    # S is its own target where the distance is 0, and any λ gives the same.
    return 1.0 if distance == 0 else min(1.0, n / (n - k) * noise / distance)


def whiten(covariance: Tensor, ridge: Tensor) -> Tensor:
    """Return W with W Wᵀ = (C + ρI)⁻¹ for a covariance C ``(D, D)`` and a ridge ρ, a scalar."""
    sigma = covariance.clone()
    sigma.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(sigma)
    if int(info) != 0:
        raise NumericsError(
            f"The covariance of {sigma.shape[0]} features with {ridge.item():.3g} added to its "
            f"diagonal, which is {sigma.diagonal().mean().item():.3g} in the mean, has no Cholesky "
            "factor; raise the shrinkage."
        )
    identity = torch.eye(sigma.shape[0], dtype=sigma.dtype, device=sigma.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()


def _isotropic(x: Tensor, resolution: float) -> Tensor:
    centre = x.mean(0, dtype=torch.float64)
    total = sum((b.to(torch.float64) - centre).square().sum().item() for b in x.split(_BLOCK))
    variance = total / x.numel()
    scale = variance**0.5 if variance > resolution else 1.0
    return torch.eye(x.shape[1], dtype=torch.float64, device=x.device) / scale
