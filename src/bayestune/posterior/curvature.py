"""Curvature (generalised Gauss-Newton) of the negative log likelihood of a linear softmax layer.

With point predictions p_n = softmax(W*φ_n), in vec W,

    G = Σ_n ω_n (diag p_n − p_n p_nᵀ) ⊗ φ_n φ_nᵀ

always a *sum* over the training set, so that a prior precision beside it keeps its meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bernoulli(probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return c_nk = ω_n p_nk (1 − p_nk), the curvature of every row in each logit alone.

    Args:
        probs: point predictions, ``(N, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.

    Returns:
        Curvatures, ``(N, K)``.
    """
    own = probs * (1 - probs)
    return own if weights is None else own * weights[:, None]


def along(probs: Tensor, classes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the curvature of every row along directions of its logits.

        ω_n cᵢᵀ (diag p_n − p_n p_nᵀ) cᵢ = ω_n [ Σ_k C_ki² p_nk − (Σ_k C_ki p_nk)² ]

    Args:
        probs: point predictions, ``(N, K)``.
        classes: the directions in columns, C, ``(K, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.

    Returns:
        Curvatures, ``(N, K)``.
    """
    mean = probs @ classes
    own = (probs @ classes.square() - mean.square()).clamp_min(0)
    return own if weights is None else own * weights[:, None]


def root(probs: Tensor) -> Tensor:
    """Return a square root of the curvature of every row in its logits, one column short of square.

        L Lᵀ = diag p − ppᵀ,   L = (I − T) diag d,   T_jk = p_j/s_k for j > k,   s_k = Σ_{j>k} p_j,
        d_k² = p_k s_k / (p_k + s_k)

    It is the Cholesky factor, whose last column is zero and left out. No difference of numbers
    close to each other is taken, so that it stays exact where one class has all the probability.

    Args:
        probs: predictions, ``(N, K)``; a class that does not exist has 0.

    Returns:
        The roots, ``(N, K, K − 1)``.

    Source: Tanabe and Sagae, An exact Cholesky decomposition of the covariance of the multinomial
    distribution (1992).
    """
    tail = probs.flip(1).cumsum(1).flip(1)  # p_k + s_k
    tiny = torch.finfo(probs.dtype).tiny
    here, rest = tail[:, :-1], tail[:, 1:]  # (N, K − 1)
    scale = (probs[:, :-1] * (rest / here.clamp_min(tiny))).sqrt()
    below = (probs[:, :, None] / rest[:, None].clamp_min(tiny)).tril(-1)  # (N, K, K − 1)
    eye = torch.eye(probs.shape[1], dtype=probs.dtype, device=probs.device)[:, :-1]
    return (eye - below) * scale[:, None]


def block(phi: Tensor, own: Tensor, chunk: int = 4096) -> Tensor:
    """Return the class blocks A_k = Σ_n c_nk φ_n φ_nᵀ of the curvature.

    Args:
        phi: features, ``(N, D)``.
        own: curvatures c of the rows, ``(N, K)``.
        chunk: rows handled at once, which bounds the memory beside the result.

    Returns:
        The blocks, ``(K, D, D)``.
    """
    blocks = phi.new_zeros(own.shape[1], phi.shape[1], phi.shape[1])
    for rows, c in zip(phi.split(chunk), own.split(chunk), strict=True):
        for k, A in enumerate(blocks):
            A.addmm_(rows.T, c[:, k, None] * rows)
    return blocks


def full(phi: Tensor, probs: Tensor, weights: Tensor | None = None, chunk: int = 4096) -> Tensor:
    """Return the whole curvature, for small problems.

    Args:
        phi: features, ``(N, D)``.
        probs: point predictions, ``(N, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.
        chunk: rows handled at once, which bounds the memory beside the result.

    Returns:
        The curvature in vec W, rows of W one after the other, ``(K·D, K·D)``.
    """
    K, D = probs.shape[1], phi.shape[1]
    omega = torch.ones_like(probs[:, :1]) if weights is None else weights[:, None]
    total = phi.new_zeros(K * D, K * D)
    for rows, p, w in zip(*(x.split(chunk) for x in (phi, probs, omega)), strict=True):
        outer = (p * w.sqrt()).unsqueeze(2) * rows.unsqueeze(1)  # (chunk, K, D)
        outer = outer.flatten(1)  # (chunk, K·D)
        total.addmm_(outer.T, outer, alpha=-1)
        for k in range(K):
            own = slice(k * D, (k + 1) * D)
            total[own, own] += rows.T @ (p[:, k, None] * w * rows)
    return total


def kronecker(phi: Tensor, probs: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return factors B, A of the approximation G ≈ B ⊗ A.

        B = Σ_n ω_n (diag p_n − p_n p_nᵀ) / Σ_n ω_n,      A = Σ_n ω_n φ_n φ_nᵀ

    It is exact where all rows predict alike.

    Args:
        phi: features, ``(N, D)``.
        probs: point predictions, ``(N, K)``.
        weights: sample weights ω, ``(N,)``; ones where absent.

    Returns:
        The class factor ``(K, K)`` and the feature factor ``(D, D)``.

    Source: Martens and Grosse, Kronecker-factored approximate curvature (2015), for a last layer.
    """
    omega = torch.ones_like(probs[:, :1]) if weights is None else weights[:, None]
    own = torch.diag((omega * probs).sum(0)) - probs.T @ (omega * probs)
    total = omega.sum().clamp_min(torch.finfo(own.dtype).tiny)  # without rows there is no curvature
    return own / total, phi.T @ (omega * phi)
