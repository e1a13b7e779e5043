"""Models and runs on disk."""

from __future__ import annotations

from bayestune.store.guarantees import save_guarantees
from bayestune.store.manifest import UNFINISHED
from bayestune.store.model import load, model_folder, save
from bayestune.store.start import recipe_of, start_from

__all__ = [
    "UNFINISHED",
    "load",
    "model_folder",
    "recipe_of",
    "save",
    "save_guarantees",
    "start_from",
]
