"""The balanced one among all pairs of factors of a product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bayestune.geometry.stiefel import wide_dtype


def balanced(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose sizes are equal in every direction.

        B' A' = B A,   B'ᵀB' = A'A'ᵀ = diag σ(BA)

    ``(B R⁻¹, R A)`` is the same function for every invertible R, but not the same to an isotropic
    prior on the factors. Of all of them the balanced pair has the least ‖B‖² + ‖A‖², twice the
    nuclear norm of BA; it is unique up to a rotation, which such a prior does not see.

    Args:
        B: ``(m, r)``.
        A: ``(r, n)``.

    Returns:
        B' ``(m, r)`` and A' ``(r, n)``, computed in float64.

    Source: Srebro, Rennie and Jaakkola, Maximum-margin matrix factorization (2005), for the norm.
    """
    r, wide = A.shape[0], wide_dtype(A.device)
    left, inner_left = torch.linalg.qr(B.detach().to(wide))
    right, inner_right = torch.linalg.qr(A.detach().mT.to(wide))
    U, values, Vh = torch.linalg.svd(inner_left @ inner_right.mT, full_matrices=False)
    root = values.sqrt()
    new_B = F.pad((left @ U) * root, (0, r - len(root)))  # (m, r)
    new_A = F.pad((right @ Vh.mT) * root, (0, r - len(root))).mT  # (r, n)
    return new_B.to(B), new_A.to(A)
