"""How good and how honest a model is, on labelled rows and on rows from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bayestune import metrics
from bayestune.data import Task
from bayestune.errors import DataError
from bayestune.evaluation.detection import detection, detection_intervals, to_json
from bayestune.evaluation.guarantees import kept
from bayestune.evaluation.regression import RegressionEvaluation, score_regression
from bayestune.model import BayesModel
from bayestune.prediction import Prediction, RegressionPrediction
from bayestune.preprocessor import Texts
from bayestune.progress import Progress, silent


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one labelled set, and its detection of others.

    Fractions, nats; ECE with 15 right-closed bins. Out-of-distribution rows are the positives;
    ``fpr95`` is the share of them accepted at the max-prob threshold that keeps 95 % of the
    in-distribution rows; ``fpr95_entropy`` and so on are the same by other scores.

    Attributes:
        n: number of labelled rows.
        accuracy: share of right labels.
        nll: mean negative log-likelihood in nats.
        ece: expected calibration error.
        adaptive_ece: the same over bins of equal mass.
        mce: largest calibration gap of a bin.
        brier: mean squared error of the probability vector, summed over classes.
        aurc: area under the risk–coverage curve by max-prob.
        kept: of a calibrated model ``set_coverage`` and ``set_size``, ``accepted`` and
            ``selective_risk``: see `evaluation.guarantees.kept`.
        intervals: 95 % bootstrap intervals of accuracy, nll, ece, brier, aurc and ``kept``.
        ood: metrics by name of the out-of-distribution set.
        ood_intervals: 95 % bootstrap intervals of its AUROCs and of fpr95, both sets redrawn.
        prediction: the predictions behind the numbers.
        targets: the labels behind the numbers ``(N,)``.
        ood_predictions: the predictions on the other sets.
    """

    n: int
    accuracy: float
    nll: float
    ece: float
    adaptive_ece: float
    mce: float
    brier: float
    aurc: float
    kept: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    ood: dict[str, dict[str, float]]
    ood_intervals: dict[str, dict[str, tuple[float, float]]]
    prediction: Prediction = field(repr=False)
    targets: torch.Tensor = field(repr=False)
    ood_predictions: dict[str, Prediction] = field(repr=False)

    @property
    def scalars(self) -> dict[str, float]:
        """The metrics by name, without the number of rows."""
        names = ("accuracy", "nll", "ece", "adaptive_ece", "mce", "brier", "aurc")
        return {name: getattr(self, name) for name in names} | self.kept

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, without the predictions."""
        return to_json(self)


def evaluate(
    model: BayesModel,
    data: Task,
    *,
    ood: Mapping[str, Texts] | None = None,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Evaluation | RegressionEvaluation:
    """Measure accuracy (or errors of numbers), calibration and out-of-distribution detection.

    Args:
        model: the model.
        data: labelled examples, all of which are evaluated.
        ood: texts (or tasks; labels are ignored) from elsewhere, by name.
        batch_size: texts in a pass; it does not change the result beyond rounding.
        progress: how to report.

    Returns:
        The metrics, with the predictions behind them.

    Raises:
        DataError: if a row has no label, there are no rows or the classes are others.
    """
    targets = model.targets(data)
    prediction = model.predict(data, batch_size, progress=progress)
    others = {
        name: model.predict(texts, batch_size, progress=progress)
        for name, texts in (ood or {}).items()
    }
    for name, rows in ((data.title, prediction), *others.items()):
        if not len(rows):
            raise DataError(f"{name}: there are no rows to evaluate on.")
    if isinstance(prediction, RegressionPrediction):
        return score_regression(prediction, targets, others)  # pyright: ignore[reportArgumentType]
    return score(prediction, targets, others)  # pyright: ignore[reportArgumentType]


def score(
    prediction: Prediction,
    targets: torch.Tensor,
    others: Mapping[str, Prediction] | None = None,
) -> Evaluation:
    """Return the metrics of predictions that are already there; see `evaluate`.

    Args:
        prediction: of N labelled rows.
        targets: their class indices ``(N,)``.
        others: predictions on out-of-distribution rows, by name.
    """
    others = dict(others or {})
    probs = prediction.probs
    confidence, correct = metrics.top_label(probs, targets)
    nll = metrics.nll(probs, targets, reduction="none")
    brier = metrics.brier(probs, targets, reduction="none")
    intervals = {
        "accuracy": metrics.mean_interval(correct.double()),
        "nll": metrics.mean_interval(nll),
        "ece": metrics.bootstrap_interval(
            lambda c, a: metrics.reliability(c, a).ece, confidence, correct
        ),
        "brier": metrics.mean_interval(brier),
        "aurc": metrics.bootstrap_interval(metrics.aurc, confidence, correct),
    }
    promises, ends = kept(prediction, targets)
    return Evaluation(
        n=len(prediction),
        accuracy=metrics.accuracy(probs, targets),
        nll=float(nll.mean()),
        ece=metrics.ece(probs, targets),
        adaptive_ece=metrics.adaptive_ece(probs, targets),
        mce=metrics.mce(probs, targets),
        brier=float(brier.mean()),
        aurc=metrics.aurc(confidence, correct),
        kept=promises,
        intervals={name: (found.low, found.high) for name, found in (intervals | ends).items()},
        ood={name: detection(prediction, other) for name, other in others.items()},
        ood_intervals={
            name: detection_intervals(prediction, other) for name, other in others.items()
        },
        prediction=prediction,
        targets=targets,
        ood_predictions=others,
    )
