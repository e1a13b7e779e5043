"""Models and runs on disk."""

from __future__ import annotations

from bayestune.store.manifest import UNFINISHED
from bayestune.store.model import load, model_folder, save

__all__ = ["UNFINISHED", "load", "model_folder", "save"]
