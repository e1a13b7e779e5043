"""Bayesian fine-tuning of language models: calibrated classifiers that know when they do not know.

``import bayestune`` is light: it imports neither torch nor peft. Every public name is loaded on
first use, and PoLAR becomes known to PEFT as soon as both packages are imported, in either order.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bayestune import _hook
from bayestune.version import __version__

if TYPE_CHECKING:
    from bayestune import geometry, guarantees, head, hf, metrics, optim, posterior
    from bayestune.calibration import calibrate
    from bayestune.config import Recipe
    from bayestune.data import Task
    from bayestune.evaluation import evaluate
    from bayestune.exports import export
    from bayestune.model import BayesModel, build
    from bayestune.online import update
    from bayestune.peft import PolarConfig
    from bayestune.prediction import Prediction, RegressionPrediction
    from bayestune.store import load, save
    from bayestune.training import fit

__all__ = [
    "BayesModel",
    "PolarConfig",
    "Prediction",
    "Recipe",
    "RegressionPrediction",
    "Task",
    "__version__",
    "build",
    "calibrate",
    "evaluate",
    "export",
    "fit",
    "geometry",
    "guarantees",
    "head",
    "hf",
    "load",
    "metrics",
    "optim",
    "posterior",
    "save",
    "update",
]

_SUBPACKAGES = frozenset({"geometry", "guarantees", "head", "hf", "metrics", "optim", "posterior"})

_HOME = {
    "BayesModel": "bayestune.model",
    "PolarConfig": "bayestune.peft",
    "Prediction": "bayestune.prediction",
    "Recipe": "bayestune.config",
    "RegressionPrediction": "bayestune.prediction",
    "Task": "bayestune.data",
    "build": "bayestune.model",
    "calibrate": "bayestune.calibration",
    "evaluate": "bayestune.evaluation",
    "export": "bayestune.exports",
    "fit": "bayestune.training",
    "load": "bayestune.store",
    "save": "bayestune.store",
    "update": "bayestune.online",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use (PEP 562)."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    from bayestune.errors import nearest

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_hook.install()
