"""Evaluation: sees only predictions and labels."""

from __future__ import annotations

from bayestune.evaluation.evaluate import Evaluation, detection, evaluate, score

__all__ = ["Evaluation", "detection", "evaluate", "score"]
