"""Evaluation: sees only predictions and labels."""

from __future__ import annotations

from bayestune.evaluation.detection import SCORES, detection
from bayestune.evaluation.evaluate import Evaluation, evaluate, score
from bayestune.evaluation.record import record
from bayestune.evaluation.regression import RegressionEvaluation, score_regression

__all__ = [
    "SCORES",
    "Evaluation",
    "RegressionEvaluation",
    "detection",
    "evaluate",
    "record",
    "score",
    "score_regression",
]
