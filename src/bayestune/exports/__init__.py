"""Trained models in the forms that other software loads, one form per file."""

from __future__ import annotations

from bayestune.exports.run import FORMS, export

__all__ = ["FORMS", "export"]
