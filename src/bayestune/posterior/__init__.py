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
    intervals,
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
from bayestune.posterior.ascent import Ascent, AscentAround, ascend, ascend_around
from bayestune.posterior.mode import mode, mode_around
from bayestune.posterior.predictive import Predictive

__all__ = [
    "Ascent",
    "AscentAround",
    "Predictive",
    "ascend",
    "ascend_around",
    "bounds",
    "classes",
    "conjugate",
    "curvature",
    "dense",
    "diagonal",
    "eigen",
    "evidence",
    "generative",
    "intervals",
    "joint",
    "kronecker",
    "laplace",
    "low_rank",
    "mode",
    "mode_around",
    "ordinal",
    "projection",
    "regression",
    "sketch",
    "subspace",
]
