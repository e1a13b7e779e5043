"""Stable rank of a low-rank update, from its factors alone."""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.errors import ConfigError, NumericsError
from bayestune.geometry.stiefel import wide_dtype


def stable_rank(theta: Tensor, X: Tensor | None = None, Y: Tensor | None = None) -> Tensor:
    """Compute ``sr(ΔW) = ‖ΔW‖_F² / ‖ΔW‖₂²`` of ``ΔW = X Θ Yᵀ`` without forming ``ΔW``.

    The squared singular values of ``ΔW`` are the eigenvalues of ``S Θ (YᵀY) Θᵀ S`` with
    ``S = (XᵀX)^{1/2}``, an r × r matrix. With orthonormal ``X`` and ``Y`` they are those of ``Θ``,
    so that ``sr(ΔW) = sr(Θ)`` and the factors may be left out. A constant scale drops out.

    Args:
        theta: the core ``(..., p, q)``.
        X: left factors ``(..., m, p)``; orthonormal ones may be omitted.
        Y: right factors ``(..., n, q)``; orthonormal ones may be omitted.

    Returns:
        Stable ranks ``(...)`` in float64 (float32 where the device has none), between 1 and the
        rank; 0.0 where ``ΔW = 0``, for which the ratio has no value.

    Raises:
        ConfigError: the shapes do not fit together.
        NumericsError: a factor holds NaN or infinite values.

    Source:
        Rudelson and Vershynin 2007; used for adapters in arXiv 2506.03133.
    """
    _check_shapes(theta, X, Y)
    for name, factor in (("theta", theta), ("X", X), ("Y", Y)):
        if factor is not None and not bool(torch.isfinite(factor).all()):
            raise NumericsError(
                f"{name} holds NaN or infinite values, so that the update has no stable rank; "
                "lower the learning rate or look for a non-finite loss"
            )
    # A constant factor drops out of the ratio but keeps the squares in range.
    core = _unit_scale(theta.detach().to(wide_dtype(theta.device)))
    inner = core if Y is None else core @ _root_gram(Y)
    inner = inner if X is None else _root_gram(X) @ inner
    squares = torch.linalg.svdvals(inner).square()  # (..., min(p, q))
    largest = squares.amax(-1)
    ratio = squares.sum(-1) / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    return torch.where(largest > 0, ratio, torch.zeros_like(ratio))


def stable_rank_lora(B: Tensor, A: Tensor) -> Tensor:
    """Compute the stable rank of ``ΔW = B A`` without forming it.

    Args:
        B: ``(..., m, r)``, the ``lora_B`` weight.
        A: ``(..., r, n)``, the ``lora_A`` weight.

    Returns:
        Stable ranks ``(...)`` as in :func:`stable_rank`; 0.0 where ``B A = 0``.

    Raises:
        ConfigError: the shapes do not fit together.
    """
    if B.shape[-1] != A.shape[-2]:
        raise ConfigError(
            f"lora_B {tuple(B.shape)} has {B.shape[-1]} columns, lora_A {tuple(A.shape)} has "
            f"{A.shape[-2]} rows; pass the (m, r) factor first and the (r, n) factor second"
        )
    eye = torch.eye(B.shape[-1], dtype=wide_dtype(B.device), device=B.device)
    return stable_rank(eye, B, A.mT)


def _check_shapes(theta: Tensor, X: Tensor | None, Y: Tensor | None) -> None:
    if theta.ndim < 2:
        raise ConfigError(f"theta must be a matrix (..., p, q); got shape {tuple(theta.shape)}")
    for name, factor, width in (("X", X, theta.shape[-2]), ("Y", Y, theta.shape[-1])):
        if factor is not None and (factor.ndim < 2 or factor.shape[-1] != width):
            raise ConfigError(
                f"{name} has shape {tuple(factor.shape)} and theta {tuple(theta.shape)}; "
                f"{name} must have {width} columns, one for each "
                f"{'row' if name == 'X' else 'column'} of theta (transpose it?)"
            )


def _root_gram(F: Tensor) -> Tensor:
    """Return ``(FᵀF)^{1/2}`` up to a constant factor, ``(..., r, r)``."""
    F = _unit_scale(F.detach().to(wide_dtype(F.device)))
    values, vectors = torch.linalg.eigh(F.mT @ F)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def _unit_scale(F: Tensor) -> Tensor:
    size = F.abs().amax((-2, -1), keepdim=True)
    return F / torch.where(size > 0, size, torch.ones_like(size))
