"""The covariance families a head can hold: which tensors, how they start, what they mean.

Whatever the family, ``log_scale`` and ``log_rest`` are logarithms of standard deviations, and
``factor`` and ``root`` carry the unit of a weight: dividing all logits by T subtracts log T from
the former and divides the latter by T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bayestune.posterior import dense, diagonal, eigen, joint, kronecker, low_rank, subspace

Name = Literal[
    "diagonal", "low_rank", "kronecker", "eigen", "dense", "subspace", "coupled", "joint"
]
Start = Callable[[int, int, int, float], dict[str, Tensor]]
Shapes = dict[str, tuple[int, ...]]


class Family(NamedTuple):
    """One covariance family.

    Attributes:
        posterior: its mathematics.
        shapes: names and shapes of its tensors for K classes, D features and R columns.
        spread: what the mathematics takes, made of the tensors.
        tensors: the tensors, made of what the mathematics takes.
        start: its tensors at one initial standard deviation s, an isotropic covariance s² I; None
            for a family that only a refresh brings.
        correlated: whether the logits of different classes are.
    """

    posterior: ModuleType
    shapes: Callable[[int, int, int], Shapes]
    spread: Callable[[Mapping[str, Tensor]], Any]
    tensors: Callable[[Any], dict[str, Tensor]]
    start: Start | None = None
    correlated: bool = False


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
        lambda t: t["log_scale"].exp(),
        lambda s: {"log_scale": s.log()},
        lambda K, D, R, s: {"log_scale": _log_scale(K, D, s)},
    ),
    "low_rank": Family(
        low_rank,
        lambda K, D, R: {"log_scale": (K, D), "factor": (K, D, R)},
        lambda t: low_rank.Spread(t["log_scale"].exp(), t["factor"]),
        lambda s: {"log_scale": s.scale.log(), "factor": s.factor},
        _small_columns,
    ),
    "kronecker": Family(
        kronecker,
        lambda K, D, R: {"log_classes": (K,), "factor": (D, D)},
        lambda t: kronecker.Spread(t["log_classes"].exp(), t["factor"]),
        lambda s: {"log_classes": s.classes.log(), "factor": s.factor},
        lambda K, D, R, s: {"log_classes": torch.zeros(K), "factor": s * torch.eye(D)},
    ),
    "eigen": Family(
        eigen,
        lambda K, D, R: {"log_scale": (K, D), "basis": (D, D)},
        lambda t: eigen.Spread(t["log_scale"].exp(), t["basis"]),
        lambda s: {"log_scale": s.scale.log(), "basis": s.features},
        lambda K, D, R, s: {"log_scale": _log_scale(K, D, s), "basis": torch.eye(D)},
    ),
    "dense": Family(
        dense,
        lambda K, D, R: {"factor": (K, D, D)},
        lambda t: t["factor"],
        lambda s: {"factor": s},
        lambda K, D, R, s: {"factor": s * torch.eye(D).repeat(K, 1, 1)},
    ),
    "subspace": Family(
        subspace,
        lambda K, D, R: {"factor": (K, R, R), "basis": (D, R), "log_rest": ()},
        lambda t: subspace.Spread(t["factor"], t["basis"], t["log_rest"].exp()),
        lambda s: {"factor": s.factor, "basis": s.basis, "log_rest": s.rest.log()},
    ),
    "coupled": Family(
        eigen,
        lambda K, D, R: {"log_scale": (K, D), "basis": (D, D), "classes": (K, K)},
        lambda t: eigen.Spread(t["log_scale"].exp(), t["basis"], t["classes"]),
        lambda s: {"log_scale": s.scale.log(), "basis": s.features, "classes": s.classes},
        correlated=True,
    ),
    "joint": Family(
        joint,
        lambda K, D, R: {"root": (K * D, K * D)},
        lambda t: t["root"],
        lambda s: {"root": s},
        correlated=True,
    ),
}

#: Families that are trained; the others come with a refresh.
TRAINED = tuple(name for name, family in FAMILIES.items() if family.start)
#: Tensors that are measured and not trained.
MEASURED = frozenset({"basis", "classes"})


def eigenbasis(features: Tensor) -> Tensor:
    """Return the eigenvectors of Σ φφᵀ in columns ``(D, D)``, for features ``(N, D)``."""
    second_moment = features.double().T @ features.double()
    return torch.linalg.eigh(second_moment).eigenvectors.to(features.dtype).contiguous()
