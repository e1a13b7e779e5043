"""Other steps back to the Stiefel manifold than the polar one, by products of r × r matrices.

Both move along a tangent vector to first order, as every retraction does. See docs/geometry.md for
what each keeps and costs beside :func:`~bayestune.geometry.step_polar`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.geometry.stiefel import Total, all_here


def step_qr(X: Tensor, V: Tensor, total: Total = all_here) -> Tensor:
    """Move along a tangent vector and orthonormalise the columns in order, ``(X + V) R⁻¹``.

    R is the upper triangular factor with a positive diagonal of ``X + V = QR``, read from the Gram
    matrix ``I + VᵀV = RᵀR``: its eigenvalues are at least one, so that its Cholesky factor exists
    and costs no accuracy until ``‖V‖₂`` is large. First order: the step depends on the order of the
    columns.

    Args:
        X: point of the manifold, up to rounding, ``(..., n, r)``.
        V: tangent vector at ``X``, ``(..., n, r)``.
        total: sums over the processes that hold rows.

    Returns:
        The new point ``(..., n, r)``, with the rounding of ``X`` corrected as well.

    Source:
        Absil, Mahony and Sepulchre 2008, example 4.1.3; Fukaya et al. 2014 (Cholesky QR).
    """
    Z = X + V
    # Without the check of `cholesky`, which would wait for a GPU.
    L = torch.linalg.cholesky_ex(total(Z.mT @ Z)).L  # (..., r, r)
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    # Inverted first: a product with all rows is several times as fast as a solution for them.
    return Z @ torch.linalg.solve_triangular(L, eye, upper=False).mT


def step_cayley(X: Tensor, V: Tensor, total: Total = all_here) -> Tensor:
    """Move along a tangent vector by a rotation of the whole space, ``(I − ½W)⁻¹(I + ½W) X``.

    The skew matrix ``W = PVXᵀ − XVᵀP`` with ``P = I − ½XXᵀ`` has ``WX = V`` and, as ``W = AB`` with
    ``A = [PV, X]`` and ``B = [X, −PV]ᵀ``, rank 2r: by Woodbury the step is
    ``X + A (I − ½BA)⁻¹ BX``, a system of size 2r. Second order for the canonical metric. A rotation
    leaves ``XᵀX`` as it is: rounding is not corrected and adds up.

    Args:
        X: point of the manifold, up to rounding, ``(..., n, r)``.
        V: tangent vector at ``X``, ``(..., n, r)``.
        total: sums over the processes that hold rows.

    Returns:
        The new point ``(..., n, r)``.

    Source:
        Wen and Yin 2013, lemma 4; Nishimori and Akaho 2005.
    """
    r = X.shape[-1]
    Z = torch.cat([X, V], -1)
    gram = total(Z.mT @ Z)  # (..., 2r, 2r)
    one = torch.eye(r, dtype=X.dtype, device=X.device).expand(gram[..., :r, :r].shape)
    upper = torch.cat([-0.5 * gram[..., :r, r:], one], -1)
    M = torch.cat([upper, torch.cat([one, torch.zeros_like(one)], -1)], -2)  # A = Z M
    AA = M.mT @ gram @ M
    BA = torch.cat([AA[..., r:, :], -AA[..., :r, :]], -2)
    identity = torch.eye(2 * r, dtype=X.dtype, device=X.device)
    # The last r columns of BA are BX.
    rotated = torch.linalg.solve_ex(identity - 0.5 * BA, BA[..., r:]).result
    return X + Z @ (M @ rotated)
