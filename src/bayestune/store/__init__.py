"""Models and runs on disk."""

from __future__ import annotations

from bayestune.store.model import load, model_folder, save

__all__ = ["load", "model_folder", "save"]
