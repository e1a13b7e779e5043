"""Optimisation: Riemannian Adam for Stiefel factors, AdamW for the rest, and their groups."""

from __future__ import annotations

from bayestune.optim.factory import build, for_trainer
from bayestune.optim.groups import DEVIATIONS, param_groups
from bayestune.optim.ivon import Ivon
from bayestune.optim.natural import step_deviations
from bayestune.optim.stiefel_adam import StiefelAdam

__all__ = [
    "DEVIATIONS",
    "Ivon",
    "StiefelAdam",
    "build",
    "for_trainer",
    "param_groups",
    "step_deviations",
]
