"""Posterior mathematics as pure functions on tensors, usable without any model."""

from __future__ import annotations

from bayestune.posterior import (
    bounds,
    classes,
    dense,
    diagonal,
    eigen,
    generative,
    kronecker,
    laplace,
    low_rank,
    ordinal,
    projection,
)
from bayestune.posterior.ascent import Ascent, ascend
from bayestune.posterior.predictive import Predictive

__all__ = [
    "Ascent",
    "Predictive",
    "ascend",
    "bounds",
    "classes",
    "dense",
    "diagonal",
    "eigen",
    "generative",
    "kronecker",
    "laplace",
    "low_rank",
    "ordinal",
    "projection",
]
