"""What evaluations share: their numbers, and how well scores of unfamiliarity tell rows apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bayestune import metrics
from bayestune.prediction import SCORES, Prediction, RegressionPrediction

Predicted = Prediction | RegressionPrediction

#: `SCORES` for numbers.
REGRESSION_SCORES: Mapping[str, Callable[[Any], Tensor]] = {
    "std": lambda p: p.std,
    "epistemic": lambda p: p.epistemic,
    "density": lambda p: p.ood_score,
}


def to_json(evaluation: Any) -> dict[str, Any]:
    """Return the numbers of an evaluation of either kind, without its predictions."""
    return {
        "n": evaluation.n,
        **evaluation.scalars,
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "ood": evaluation.ood,
        "ood_intervals": {
            name: {metric: list(ends) for metric, ends in intervals.items()}
            for name, intervals in evaluation.ood_intervals.items()
        },
    }


def detection(inside: Predicted, outside: Predicted) -> dict[str, float]:
    """Return how well each score tells outside rows (the positives) from inside ones."""
    found: dict[str, float] = {}
    for key, metric in (
        ("auroc", metrics.auroc),
        ("aupr", metrics.aupr),
        ("fpr95", metrics.fpr_at_recall),
    ):
        for name, score in _scores(inside).items():
            found[_key(key, name)] = metric(score(inside), score(outside))
    return found


def detection_intervals(inside: Predicted, outside: Predicted) -> dict[str, tuple[float, float]]:
    """Return bootstrap intervals of `detection`'s AUROCs and of its FPR95 by the first score."""
    found: dict[str, tuple[float, float]] = {}
    scores = _scores(inside)
    asked = [("auroc", metrics.auroc, name) for name in scores]
    for key, metric, name in (*asked, ("fpr95", metrics.fpr_at_recall, next(iter(scores)))):
        pair = scores[name](inside), scores[name](outside)
        interval = metrics.bootstrap_interval(metric, *pair, together=False)
        found[_key(key, name)] = (interval.low, interval.high)
    return found


def _scores(prediction: Predicted) -> Mapping[str, Callable[[Any], Tensor]]:
    return REGRESSION_SCORES if isinstance(prediction, RegressionPrediction) else SCORES


def _key(metric: str, score: str) -> str:
    return "fpr95" if (metric, score) == ("fpr95", "max_prob") else f"{metric}_{score}"
