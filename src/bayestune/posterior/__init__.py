"""Posterior mathematics as pure functions on tensors, usable without any model."""

from __future__ import annotations

from bayestune.posterior import (
    bounds,
    conjugate,
    dense,
    diagonal,
    eigen,
    kronecker,
    laplace,
    low_rank,
    regression,
)
from bayestune.posterior.ascent import Ascent, ascend
from bayestune.posterior.predictive import Predictive

__all__ = [
    "Ascent",
    "Predictive",
    "ascend",
    "bounds",
    "conjugate",
    "dense",
    "diagonal",
    "eigen",
    "kronecker",
    "laplace",
    "low_rank",
    "regression",
]
