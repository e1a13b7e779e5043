"""The Stiefel manifold St(n, r) = {X : XᵀX = I} by products with r × r matrices alone.

Every function takes ``(..., n, r)`` with ``r <= n``, costs O(n r²) time and O(n r) memory, and
works on each matrix of the leading dimensions by itself. No n × n matrix is ever formed.

The rows may lie on several processes: pass those that are here, ``(..., k, r)``, and as ``total``
what sums a small tensor over the processes. Only products over rows need it, which are r × r.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayestune.errors import ConfigError, NumericsError

NEWTON_SCHULZ_STEPS = 10

#: Sums a tensor over the processes that hold rows of a matrix.
Total = Callable[[Tensor], Tensor]


def all_here(S: Tensor) -> Tensor:
    """Return a sum over rows as it is, because no other process holds any."""
    return S


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating type of a device: float64, or float32 where it has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def random_point(
    n: int,
    r: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw a point of St(n, r) from the uniform (Haar) distribution.

    The polar factor of a Gaussian matrix is uniform, because ``Z ~ N(0, I)`` has the same law as
    ``O Z`` for every rotation ``O`` (Chikuse 2003, chapter 2).

    Args:
        n: number of rows.
        r: number of columns, at most ``n``.
        generator: source of randomness; its device is where the numbers are drawn.
        dtype: type of the result; the drawing and orthonormalising are done in float64.
        device: where the result goes; that of the generator when omitted.

    Returns:
        Orthonormal columns, ``(n, r)``.

    Raises:
        ConfigError: ``r`` is not between 1 and ``n``.
    """
    if not 1 <= r <= n:
        raise ConfigError(
            f"St(n, r) needs 1 <= r <= n; got n={n}, r={r}. Choose a rank of at most {n}."
        )
    source = generator.device if generator is not None else torch.device("cpu")
    z = torch.randn(n, r, generator=generator, dtype=wide_dtype(source), device=source)
    return retract_polar(z).to(device=device or source, dtype=dtype)


def orthogonality_error(X: Tensor, total: Total = all_here) -> Tensor:
    """Measure how far each matrix is from the manifold, ``‖XᵀX − I‖_F``.

    Args:
        X: ``(..., n, r)``; half precision is measured in float32.
        total: sums over the processes that hold rows.

    Returns:
        Frobenius distances ``(...)``.
    """
    X = _at_least_single(X)
    return torch.linalg.matrix_norm(_defect(total(X.mT @ X)))


def check_point(X: Tensor, atol: float = 1e-4, total: Total = all_here) -> tuple[bool, str | None]:
    """Say whether every matrix lies on the manifold, and if not, why.

    Args:
        X: ``(..., n, r)``.
        atol: largest accepted ``‖XᵀX − I‖_F``.
        total: sums over the processes that hold rows.

    Returns:
        ``(True, None)``, or ``False`` and a sentence with the reason.
    """
    if X.ndim < 2:
        return False, f"shape {tuple(X.shape)} is not a matrix"
    # The rows that are here say nothing about how many there are.
    if total is all_here and X.shape[-1] > X.shape[-2]:
        return False, f"shape {tuple(X.shape)} has more columns than rows"
    error = orthogonality_error(X, total)
    worst = error.amax().item() if error.numel() else 0.0
    if not worst <= atol:  # written so that NaN fails
        return False, f"‖XᵀX − I‖_F = {worst:.3g} is above {atol:.3g}"
    return True, None


def canonical_gradient(X: Tensor, G: Tensor) -> Tensor:
    """Turn a Euclidean gradient into the field ``(GXᵀ − XGᵀ) X = G(XᵀX) − X(GᵀX)``.

    On the manifold this is the Riemannian gradient under the canonical metric; off it, it is a
    skew matrix times ``X`` and so keeps ``XᵀX`` to first order.

    Args:
        X: point, on or near the manifold, ``(..., n, r)``.
        G: Euclidean gradient of the loss at ``X``, ``(..., n, r)``.

    Returns:
        The field ``(..., n, r)``; a descent step subtracts it.

    Source:
        Lion et al. 2025 (arXiv 2506.03133), without their penalty and, as there, without ½.
    """
    return G @ (X.mT @ X) - X @ (G.mT @ X)


def project_tangent(X: Tensor, Z: Tensor, total: Total = all_here) -> Tensor:
    """Project orthogonally (Euclidean metric) onto the tangent space, ``Z − X sym(XᵀZ)``.

    Args:
        X: point of the manifold, ``(..., n, r)``.
        Z: any direction, ``(..., n, r)``.
        total: sums over the processes that hold rows.

    Returns:
        The nearest ``V`` with ``XᵀV + VᵀX = 0``, ``(..., n, r)``.

    Source:
        Absil, Mahony and Sepulchre 2008, example 3.6.2.
    """
    S = total(X.mT @ Z)  # (..., r, r)
    return torch.baddbmm(_many(Z), _many(X), _many(S + S.mT), alpha=-0.5).view_as(Z)


def landing_field(X: Tensor, G: Tensor, penalty: float, total: Total = all_here) -> Tensor:
    """Compute the landing field ``Λ(X) = (GXᵀ − XGᵀ) X + λ X(XᵀX − I)``.

    The two terms are orthogonal, so that a plain gradient step lets only the second one and terms
    of second order change the distance to the manifold.

    Args:
        X: point near the manifold, ``(..., n, r)``.
        G: Euclidean gradient of the loss at ``X``, ``(..., n, r)``.
        penalty: the weight λ of the pull towards the manifold.
        total: sums over the processes that hold rows.

    Returns:
        The field ``(..., n, r)``; a descent step subtracts it.

    Source:
        Ablin and Peyré 2022 (arXiv 2102.07432); rectangular form of arXiv 2506.03133.
    """
    gram = total(X.mT @ X)  # (..., r, r)
    return G @ gram + X @ (penalty * _defect(gram) - total(G.mT @ X))


def safe_step(
    X: Tensor,
    field: Tensor,
    penalty: float,
    lr: float,
    radius: float = 0.5,
    total: Total = all_here,
) -> Tensor:
    """Bound the step along the landing field so that the next point stays near the manifold.

    With ``d = ‖XᵀX − I‖_F``, ``g = ‖Λ‖_F`` and ``β = λ d (1 − d)`` the step is the least of ``lr``,
    ``1/(2λ)`` and ``(β + √(β² + g² max(ε − d, 0))) / g²``. From ``d <= ε`` the next distance is at
    most ε; from ``ε < d < 1`` it is at most ``d``. From ``d >= 1`` nothing can be promised and the
    step is 0: retract such a point first.

    Args:
        X: points ``(..., n, r)``.
        field: the landing field at ``X`` with the same ``penalty``, ``(..., n, r)``.
        penalty: the weight λ.
        lr: the step that would be taken if it were safe.
        radius: the distance ε that the iterates may reach.
        total: sums over the processes that hold rows.

    Returns:
        Step sizes ``(...)``, between 0 and ``lr``.

    Source:
        Ablin and Peyré 2022 (arXiv 2102.07432), safe step size.
    """
    d = orthogonality_error(X, total)
    g2 = total(field.to(d.dtype).square().sum((-2, -1)))
    beta = penalty * d * (1 - d)
    root = torch.sqrt(beta.square() + g2 * (radius - d).clamp_min(0))
    # A vanishing field leaves the point where it is, so that every step is safe.
    bound = torch.where(g2 > 0, (beta + root) / g2.clamp_min(torch.finfo(d.dtype).tiny), lr)
    cap = lr if penalty <= 0 else min(lr, 1 / (2 * penalty))
    return bound.clamp(min=0.0, max=cap)


def retract_polar(X: Tensor) -> Tensor:
    """Return the orthonormal matrix nearest to ``X``, its polar factor ``X (XᵀX)^{-1/2}``.

    The Gram matrix and its inverse root are taken in float64 (float32 where the device has no
    float64), so that points far from the manifold lose no accuracy through the squaring of their
    condition number. Use :func:`step_polar` where the point is known to be near.

    Args:
        X: ``(..., n, r)`` of full column rank.

    Returns:
        Nearest orthonormal matrices, ``(..., n, r)``, of the type of ``X``.

    Raises:
        NumericsError: a matrix is not finite or has not full column rank.

    Source:
        Higham 2008, theorem 8.4; Absil and Malick 2012 (nearest-point retraction).
    """
    wide = X.to(wide_dtype(X.device))
    gram = wide.mT @ wide  # (..., r, r)
    if not bool(torch.isfinite(gram).all()):
        raise NumericsError(
            "a matrix that should be made orthonormal holds NaN, infinite or huge values; "
            "lower the learning rate or look for a non-finite loss"
        )
    values, vectors = torch.linalg.eigh(gram)
    smallest, largest = values[..., 0], values[..., -1]
    if bool((smallest <= largest * (X.shape[-1] * torch.finfo(wide.dtype).eps)).any()):
        raise NumericsError(
            f"a matrix of shape {tuple(X.shape[-2:])} that should be made orthonormal has not "
            "full column rank, so that its nearest orthonormal matrix is not unique; "
            "draw a new one with random_point"
        )
    root = (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT  # (..., r, r)
    return (wide @ root).to(X.dtype)


def step_polar(
    X: Tensor, V: Tensor, iterations: int = NEWTON_SCHULZ_STEPS, total: Total = all_here
) -> Tensor:
    """Move along a tangent vector and retract, ``(X + V) (XᵀX + VᵀV)^{-1/2}``.

    A tangent ``V`` gives a Gram matrix with eigenvalues of at least one, so that a coupled
    Newton–Schulz iteration of fixed length suffices: no factorisation, no look at the values (and
    hence no wait for a GPU). Ten iterations reach float32 precision for ``‖V‖₂ <= 10``, which is
    a turn by 84°.

    Args:
        X: point of the manifold, up to rounding, ``(..., n, r)``.
        V: tangent vector at ``X``, ``(..., n, r)``.
        iterations: length of the Newton–Schulz iteration.
        total: sums over the processes that hold rows.

    Returns:
        The new point ``(..., n, r)``, with the rounding of ``X`` corrected as well.

    Source:
        Higham 2008, chapter 6 (coupled Newton–Schulz for the inverse square root).
    """
    Z = X + V
    return Z @ _inverse_root(total(Z.mT @ Z), iterations)


def _inverse_root(A: Tensor, iterations: int) -> Tensor:
    """Approximate ``A^{-1/2}`` of symmetric positive definite ``(..., r, r)`` by Newton–Schulz."""
    many = _many(A)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # The iteration converges for eigenvalues in (0, 3): divide by the mean eigenvalue, which is
    # best near the identity, unless that leaves a bound of the largest one above 2.5.
    mean = many.diagonal(dim1=-2, dim2=-1).mean(-1)
    bound = many.abs().sum(-1).amax(-1)
    scale = torch.maximum(mean, bound / 2.5)[:, None, None]
    Y, W = many / scale, eye.expand_as(many)
    for _ in range(iterations):
        # One kernel a product: of small matrices the launches are what takes time.
        T = torch.baddbmm(1.5 * eye, W, Y, alpha=-0.5)
        Y, W = torch.bmm(Y, T), torch.bmm(T, W)
    return (W * scale.rsqrt()).view_as(A)


def _many(A: Tensor) -> Tensor:
    """Return matrices ``(..., n, r)`` as ``(B, n, r)``, as the batched kernels want them."""
    return A.flatten(end_dim=-3) if A.ndim > 2 else A.unsqueeze(0)


def _defect(gram: Tensor) -> Tensor:
    return gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _at_least_single(X: Tensor) -> Tensor:
    return X.float() if X.dtype in (torch.bfloat16, torch.float16) else X
