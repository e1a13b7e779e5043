"""Posterior mathematics as pure functions on tensors, usable without any model."""

from __future__ import annotations

from bayestune.posterior import bounds, dense, diagonal, laplace
from bayestune.posterior.predictive import Predictive

__all__ = ["Predictive", "bounds", "dense", "diagonal", "laplace"]
