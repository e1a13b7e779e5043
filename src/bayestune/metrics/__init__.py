"""Metrics of probabilities, confidences and out-of-distribution scores.

Pure functions that take tensors, NumPy arrays or lists of any float type, compute in float64 and
return Python floats (or float64 tensors where one value per row is asked for).
"""

from bayestune.metrics.bootstrap import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)
from bayestune.metrics.calibration import (
    Reliability,
    adaptive_ece,
    classwise_ece,
    ece,
    mce,
    reliability,
)
from bayestune.metrics.classification import accuracy, brier, nll, top_label
from bayestune.metrics.density import Density, density_score, fit_density
from bayestune.metrics.growth import extend_density
from bayestune.metrics.ood import RocCurve, aupr, auroc, fpr_at_recall, roc_curve
from bayestune.metrics.regression import (
    absolute_error,
    crps,
    inside_interval,
    regression_nll,
    squared_error,
)
from bayestune.metrics.selective import (
    RiskCoverage,
    aurc,
    coverage_at_risk,
    e_aurc,
    risk_at_coverage,
    risk_coverage_curve,
)

__all__ = [
    "Density",
    "Interval",
    "PairedDifference",
    "Reliability",
    "RiskCoverage",
    "RocCurve",
    "absolute_error",
    "accuracy",
    "adaptive_ece",
    "aupr",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "brier",
    "classwise_ece",
    "coverage_at_risk",
    "crps",
    "density_score",
    "e_aurc",
    "ece",
    "extend_density",
    "fit_density",
    "fpr_at_recall",
    "inside_interval",
    "mce",
    "mean_interval",
    "nll",
    "paired_difference",
    "regression_nll",
    "reliability",
    "risk_at_coverage",
    "risk_coverage_curve",
    "roc_curve",
    "squared_error",
    "top_label",
]
