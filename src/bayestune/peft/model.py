"""The PoLAR tuner: what PEFT instantiates around a model."""

from __future__ import annotations

from bayestune.peft.layer import PolarLinear
from bayestune.peft.tuner import LinearTuner

__all__ = ["PolarModel"]


class PolarModel(LinearTuner):
    """Adapts the linear layers of a model with PoLAR, ``ΔW = s · X Θ Yᵀ``."""

    prefix = "polar_"
    tuner_layer_cls = PolarLinear
