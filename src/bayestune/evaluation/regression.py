"""How good and how honest predicted numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bayestune import metrics
from bayestune.evaluation.detection import detection, detection_intervals, to_json
from bayestune.prediction import RegressionPrediction

#: Probability of the central interval whose coverage is measured.
LEVEL = 0.9


@dataclass(frozen=True)
class RegressionEvaluation:
    """Metrics of one model on rows with their numbers, and its detection of other rows.

    All in the unit of the numbers, the NLL too: in nats, of a density per that unit.

    Attributes:
        n: number of rows.
        rmse: root of the mean squared error of the mean.
        mae: mean absolute error of the mean.
        nll: mean negative log density.
        crps: mean continuous ranked probability score.
        coverage90: share of numbers inside the central 90 % interval.
        intervals: 95 % bootstrap intervals of all of them.
        ood: metrics by name of the out-of-distribution set.
        ood_intervals: 95 % bootstrap intervals of its AUROCs, both sets redrawn.
        prediction: the predictions behind the numbers.
        targets: the numbers themselves, float64 ``(N,)``.
        ood_predictions: the predictions on the other sets.
    """

    n: int
    rmse: float
    mae: float
    nll: float
    crps: float
    coverage90: float
    intervals: dict[str, tuple[float, float]]
    ood: dict[str, dict[str, float]]
    ood_intervals: dict[str, dict[str, tuple[float, float]]]
    prediction: RegressionPrediction = field(repr=False)
    targets: torch.Tensor = field(repr=False)
    ood_predictions: dict[str, RegressionPrediction] = field(repr=False)

    @property
    def scalars(self) -> dict[str, float]:
        """The metrics by name, without the number of rows."""
        return {name: getattr(self, name) for name in ("rmse", "mae", "nll", "crps", "coverage90")}

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, without the predictions."""
        return to_json(self)


def score_regression(
    prediction: RegressionPrediction,
    targets: torch.Tensor,
    others: Mapping[str, RegressionPrediction] | None = None,
) -> RegressionEvaluation:
    """Return the metrics of predictions that are already there.

    Args:
        prediction: of N rows.
        targets: their numbers ``(N,)``.
        others: predictions on out-of-distribution rows, by name.
    """
    others = dict(others or {})
    p = prediction
    squared = metrics.squared_error(p.mean, targets)
    per_row = {
        "mae": metrics.absolute_error(p.mean, targets),
        "nll": metrics.regression_nll(p.mean, p.std, targets, p.dof),
        "crps": metrics.crps(p.mean, p.std, targets, p.dof),
        "coverage90": metrics.inside_interval(p.mean, p.std, targets, LEVEL, p.dof),
    }
    ends = {name: metrics.mean_interval(rows) for name, rows in per_row.items()}
    ends["rmse"] = metrics.bootstrap_interval(lambda rows: float(rows.mean()) ** 0.5, squared)
    return RegressionEvaluation(
        n=len(p),
        rmse=float(squared.mean()) ** 0.5,
        **{name: float(rows.mean()) for name, rows in per_row.items()},
        intervals={name: (interval.low, interval.high) for name, interval in ends.items()},
        ood={name: detection(p, other) for name, other in others.items()},
        ood_intervals={name: detection_intervals(p, other) for name, other in others.items()},
        prediction=p,
        targets=targets,
        ood_predictions=others,
    )
