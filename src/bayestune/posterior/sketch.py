"""The leading part of a Gram matrix whose rows pass by once, in memory linear in its size."""

from __future__ import annotations

import torch
from torch import Tensor

#: Relative size of what is rounding in the small core of a sketch.
_ROUNDING = 1e-6


class Sketch:
    """Collects ``G = Σ xxᵀ`` of rows x in R^D: whole, or ``Y = G Ω`` for 2R orthonormal columns.

    Delivered are the R leading eigenpairs of the Nyström approximation ``Y (ΩᵀY)⁺ Yᵀ ≤ G``, which
    miss about as much as, and rarely twice what, the best of rank R miss. Neither the order of the
    rows matters nor how they are cut into batches.

    Args:
        size: D.
        columns: R; None, or half of D and more, collects the whole of G.
        like: gives dtype and device.

    Source: Tropp, Yurtsever, Udell and Cevher, Fixed-rank approximation of a positive-semidefinite
    matrix from streaming data (2017).
    """

    def __init__(self, size: int, columns: int | None, like: Tensor) -> None:
        self.columns = size if columns is None else min(columns, size)
        self.test: Tensor | None = None
        if 2 * self.columns < size:
            random = torch.Generator().manual_seed(0)
            drawn = torch.randn(size, 2 * self.columns, generator=random, dtype=torch.float64)
            self.test = torch.linalg.qr(drawn).Q.to(like)
        self.image = like.new_zeros(size, size if self.test is None else 2 * self.columns)

    def add(self, rows: Tensor) -> None:
        """Take in rows ``(N, D)``."""
        self.image += rows.T @ (rows if self.test is None else rows @ self.test)

    def leading(self) -> tuple[Tensor, Tensor]:
        """Return the R largest eigenvalues, descending ``(R,)``, and eigenvectors ``(D, R)``.

        Where G has fewer, the rest are zeros. They are computed in float64, on the CPU.
        """
        image = self.image.cpu().double()
        if self.test is None:
            values, vectors = torch.linalg.eigh(image)
            values, vectors = values.flip(0), vectors.flip(1)
        else:
            core = self.test.cpu().double().T @ image  # (2R, 2R)
            weight, turn = torch.linalg.eigh((core + core.T) / 2)
            kept = weight > _ROUNDING * weight.amax()
            half = (image @ turn[:, kept]) * weight[kept].rsqrt()  # (D, ≤ 2R)
            vectors, roots, _ = torch.linalg.svd(half, full_matrices=False)
            values = roots.square()
        found = min(self.columns, len(values))
        top = image.new_zeros(self.columns)
        basis = image.new_zeros(len(image), self.columns)
        top[:found] = values[:found].clamp_min(0)
        basis[:, :found] = vectors[:, :found]
        return top, basis
