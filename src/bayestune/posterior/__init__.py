"""Posterior mathematics as pure functions on tensors, usable without any model."""

from __future__ import annotations

from bayestune.posterior import (
    bounds,
    classes,
    conjugate,
    curvature,
    dense,
    diagonal,
    eigen,
    evidence,
    generative,
    joint,
    kronecker,
    laplace,
    low_rank,
    ordinal,
    projection,
    regression,
    sketch,
    subspace,
)
from bayestune.posterior.ascent import Ascent, ascend
from bayestune.posterior.mode import mode
from bayestune.posterior.predictive import Predictive

__all__ = [
    "Ascent",
    "Predictive",
    "ascend",
    "bounds",
    "classes",
    "conjugate",
    "curvature",
    "dense",
    "diagonal",
    "eigen",
    "evidence",
    "generative",
    "joint",
    "kronecker",
    "laplace",
    "low_rank",
    "mode",
    "ordinal",
    "projection",
    "regression",
    "sketch",
    "subspace",
]
