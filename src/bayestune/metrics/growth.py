"""A density of features that takes in more rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.metrics.density import Density, whiten
from bayestune.metrics.inputs import ArrayLike, as_labels, as_tensor, same_rows

_BLOCK = 4096  # rows in float64 at once


def extend_density(density: Density, features: ArrayLike, labels: ArrayLike) -> Density:
    """Return the density of all rows so far and these, by running sums.

        μ'_k = (n_k μ_k + Σ x) / n'_k
        Σ' = [ (n − k) Σ + (1 − λ) Z + λ (tr Z / D) I ] / (n' − k')
        Z = Σ_i (x_i − μ_{y_i}) (x_i − μ_{y_i})ᵀ − Σ_k (Δ_kΔ_kᵀ / n'_k),   Δ_k = Σ (x_i − μ_k)

    with sums over the new rows, n and k counting the classes of two rows and more. Means and
    covariance are those that `fit_density` gives all rows at the shrinkage λ of the first ones,
    which stays: what it is estimated by is not kept. In any order, up to rounding.

    Args:
        density: with its counts and shrinkage.
        features: finite features (N, D) of the new rows.
        labels: class indices (N,).

    Raises:
        ConfigError: if the density has no counts: one stored by an earlier version.
    """
    if density.counts is None or density.shrinkage is None:
        raise ConfigError("The density has no counts of its rows: fit it anew.")
    x = as_tensor(features, "features", torch.float64).to(density.means.device)
    y = as_labels(labels, len(density.means)).to(x.device)
    same_rows(x, y, "features", "labels")
    before, added = density.counts, torch.bincount(y, minlength=len(density.means))
    after = before + added
    means = density.means.double()
    # A class that is new has no mean; its first rows are taken around one of themselves.
    fresh = (before == 0) & (added > 0)
    for k in fresh.nonzero().flatten():
        means[k] = x[y == k].mean(0)
    moved, scatter = _sums(x, y, means)
    share = moved / after.clamp_min(1)[:, None]
    scatter -= moved.T @ share

    white = density.whitening.double()
    eye = torch.eye(len(white), dtype=white.dtype, device=white.device)
    root = torch.linalg.solve_triangular(white.T, eye, upper=False)  # Σ = R Rᵀ, R = W⁻ᵀ
    (n, k), (total, present) = ((int(c[c > 1].sum()), int((c > 1).sum())) for c in (before, after))
    lam = float(density.shrinkage)
    freedom = total - present
    sigma = (n - k) * (root @ root.T) + (1 - lam) * scatter
    whitening = white
    if freedom and scatter.any():  # else no class has two rows, or these are where the means are
        whitening = whiten(sigma / freedom, lam * scatter.diagonal().mean() / freedom)
    return Density(means + share, whitening, after > 0, after, density.shrinkage)


def _sums(x: Tensor, y: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ (x − μ_y) of each class ``(K, D)`` and Σ (x − μ_y)(x − μ_y)ᵀ ``(D, D)``."""
    moved, scatter = torch.zeros_like(means), means.new_zeros(x.shape[1], x.shape[1])
    for rows, labels in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        off = rows - means[labels]
        moved.index_add_(0, labels, off)
        scatter.addmm_(off.T, off)
    return moved, scatter
