"""The covariance families a head can hold: which tensors, how they start, what they mean.

Whatever the family, ``log_scale`` is the logarithm of standard deviations and ``factor`` carries
the unit of a weight: dividing all logits by T subtracts log T from the one and divides the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bayestune.posterior import dense, diagonal, eigen, kronecker, low_rank

Name = Literal["diagonal", "low_rank", "kronecker", "eigen", "dense"]
Shapes = dict[str, tuple[int, ...]]


class Family(NamedTuple):
    """One covariance family.

    Attributes:
        posterior: its mathematics.
        shapes: names and shapes of its tensors for K classes, D features and R columns.
        start: its tensors at one initial standard deviation s: an isotropic covariance s² I.
        spread: what the mathematics takes, made of the tensors.
    """

    posterior: ModuleType
    shapes: Callable[[int, int, int], Shapes]
    start: Callable[[int, int, int, float], dict[str, Tensor]]
    spread: Callable[[Mapping[str, Tensor]], Any]


def _log_scale(K: int, D: int, s: float) -> Tensor:
    return torch.full((K, D), math.log(s))


def _small_columns(K: int, D: int, R: int, s: float) -> dict[str, Tensor]:
    # Columns of exactly zero have no gradient; together these are a hundredth of the variance.
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(K, D, R, generator=generator) * (0.1 * s / math.sqrt(R))
    return {"log_scale": _log_scale(K, D, s), "factor": columns}


FAMILIES: dict[Name, Family] = {
    "diagonal": Family(
        diagonal,
        lambda K, D, R: {"log_scale": (K, D)},
        lambda K, D, R, s: {"log_scale": _log_scale(K, D, s)},
        lambda t: t["log_scale"].exp(),
    ),
    "low_rank": Family(
        low_rank,
        lambda K, D, R: {"log_scale": (K, D), "factor": (K, D, R)},
        _small_columns,
        lambda t: low_rank.Spread(t["log_scale"].exp(), t["factor"]),
    ),
    "kronecker": Family(
        kronecker,
        lambda K, D, R: {"log_classes": (K,), "factor": (D, D)},
        lambda K, D, R, s: {"log_classes": torch.zeros(K), "factor": s * torch.eye(D)},
        lambda t: kronecker.Spread(t["log_classes"].exp(), t["factor"]),
    ),
    "eigen": Family(
        eigen,
        lambda K, D, R: {"log_scale": (K, D), "basis": (D, D)},
        lambda K, D, R, s: {"log_scale": _log_scale(K, D, s), "basis": torch.eye(D)},
        lambda t: eigen.Spread(t["log_scale"].exp(), t["basis"]),
    ),
    "dense": Family(
        dense,
        lambda K, D, R: {"factor": (K, D, D)},
        lambda K, D, R, s: {"factor": s * torch.eye(D).repeat(K, 1, 1)},
        lambda t: t["factor"],
    ),
}

#: Tensors that are measured and not trained.
MEASURED = frozenset({"basis"})


def eigenbasis(features: Tensor) -> Tensor:
    """Return the eigenvectors of Σ φφᵀ in columns ``(D, D)``, for features ``(N, D)``."""
    second_moment = features.double().T @ features.double()
    return torch.linalg.eigh(second_moment).eigenvectors.to(features.dtype).contiguous()
