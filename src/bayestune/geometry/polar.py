"""The orthogonal polar factor of small square matrices, by products alone."""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_SCHULZ_STEPS = 10


def polar_factor(M: Tensor, iterations: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Return the nearest orthogonal matrix, smoothly damped where M says next to nothing.

        M = U Σ Vᵀ   ↦   U f(Σ/‖M‖_F) Vᵀ,      f ≈ 1 above 10⁻², f(σ) ≈ 1.875^k σ below 10⁻³

    f is the k-fold composition of (15σ − 10σ³ + 3σ⁵)/8, which grows from 0 to 1 on [0, 1]: a
    direction that is there by rounding alone is not blown up to full length, as an exact polar
    factor would do. No factorisation and no look at the values; ``M = 0`` gives 0.

    The map commutes with rotations: ``polar_factor(Q M R) = Q polar_factor(M) R`` for orthogonal
    Q, R.

    Args:
        M: matrices, ``(..., r, c)``.
        iterations: k.

    Returns:
        The factors, ``(..., r, c)``.

    Source: Higham 2008, "Functions of Matrices", section 8.3 (Newton–Schulz of higher order).
    """
    X = M.float() if M.dtype in (torch.bfloat16, torch.float16) else M
    # In two steps, so that the squares of tiny gradients do not underflow.
    X = X / X.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp_min(1)
    for _ in range(iterations):
        A = X.mT @ X  # (..., c, c)
        X = (15 * X - X @ (10 * A - 3 * A @ A)) / 8
    return X.to(M.dtype)
