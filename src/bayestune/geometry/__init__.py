"""Geometry of the adapter factors: Stiefel matrices and stable rank, as pure functions."""

from __future__ import annotations

from bayestune.geometry.balance import balanced
from bayestune.geometry.polar import polar_factor
from bayestune.geometry.rank import stable_rank, stable_rank_lora
from bayestune.geometry.retractions import step_cayley, step_qr
from bayestune.geometry.stiefel import (
    canonical_gradient,
    check_point,
    landing_field,
    orthogonality_error,
    project_tangent,
    random_point,
    retract_polar,
    safe_step,
    step_polar,
)

__all__ = [
    "balanced",
    "canonical_gradient",
    "check_point",
    "landing_field",
    "orthogonality_error",
    "polar_factor",
    "project_tangent",
    "random_point",
    "retract_polar",
    "safe_step",
    "stable_rank",
    "stable_rank_lora",
    "step_cayley",
    "step_polar",
    "step_qr",
]
