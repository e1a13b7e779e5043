"""What all forms of a report say in the same words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bayestune.bench.afterwards import COVERAGE, HALVINGS
from bayestune.bench.table import AFTER, METRICS, Estimate
from bayestune.report.contents import Method, Report, TaskReport, Trial

#: Columns whose lower values are better.
FALLING = tuple(title for title in (*METRICS, *AFTER) if title != "acc")
#: Parts of a task by name.
PARTS = {"train": "training", "val": "held-out", "test": "test"}
#: Columns of costs: seconds of a cell, and how they are shown.
COSTS = ("train_seconds", "predict_seconds")


def reading(report: Report) -> tuple[str, ...]:
    """Return how to read the tables, a sentence or two each."""
    found = [
        "± is the standard error over training seeds, which other seeds would change. The interval "
        "of a difference is a bootstrap over the same test rows, seeds averaged: what other test "
        "rows would change. It is not corrected for the number of comparisons.",
        f"Differences, and times with ×, are relative to {report.reference}.",
        "Bold is the lowest NLL and every NLL whose paired difference to it has a 95 % interval "
        "that holds 0. No other column is tested, so none is bold.",
        "NLL, T and ECE, T are those of the delivered probabilities to the power 1/T, normalised, "
        "T fitted on the held-out rows for every row alike: what is left once all are tempered.",
        f"Set size is the mean number of classes in prediction sets (LAC) that hold the true one "
        f"with {COVERAGE:.0%}: calibrated on one half of the test rows, applied to the other, "
        f"mean over {HALVINGS} halvings.",
        "Learning rates are chosen on the first seed by the held-out NLL of what is delivered.",
        "ECE has 15 equal bins and is biased upwards where test rows are few. OOD columns are "
        "AUROCs of telling rows from elsewhere apart by max-prob, mutual information (MI) and "
        "feature density.",
    ]
    if names := controls(report):
        found.append(
            f"Controls are point estimates, without epistemic uncertainty: {', '.join(names)}. "
            "The best of them is what a method has to beat."
        )
    return tuple(found)


def controls(report: Report) -> tuple[str, ...]:
    """Return the rows that are point estimates on every task that they are in."""
    points: dict[str, bool] = {}
    for method in (method for task in report.tasks for method in task.methods):
        points[method.name] = points.get(method.name, True) and method.point
    return tuple(row for row in report.rows if points.get(row, False))


def costs(method: Method) -> dict[str, Estimate]:
    """Return seconds of training and milliseconds per predicted text."""
    cells = method.entry.line.cells
    train = [c.cost["train_seconds"] for c in cells]
    predict = [1e3 * c.cost["predict_seconds"] / c.cost["predict_rows"] for c in cells]
    return dict(zip(COSTS, (Estimate.of(train), Estimate.of(predict)), strict=True))


def dropped(task: TaskReport) -> str:
    """Return how many rows of a task were left out, by part."""
    counts = task.table.counts["dropped"] if task.table else {}
    return ", ".join(f"{n} {PARTS.get(part, part)}" for part, n in counts.items()) or "none"


def tried(trial: Trial) -> str:
    """Return what a learning rate gave."""
    return "broke off" if trial.nll is None else f"{trial.nll:.3f}"


def seeds(method: Method) -> str:
    """Return the seeds of a row."""
    return ", ".join(str(cell.key.seed) for cell in method.entry.line.cells)


def plain(value: Any) -> str:
    """Return a value as YAML would be read: text bare, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def pairs(values: Mapping[str, Any], between: str = "  ") -> str:
    """Return ``key=value`` pairs; values per seed stand behind one another."""
    said = {key: value for key, value in values.items() if value not in (None, {}, ())}
    return between.join(
        f"{key}={' '.join(map(plain, value)) if isinstance(value, tuple) else plain(value)}"
        for key, value in said.items()
    )
