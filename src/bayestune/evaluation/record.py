"""Stating in a model's card what was measured of it."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from bayestune import metrics
from bayestune.data import Task
from bayestune.evaluation.evaluate import Evaluation
from bayestune.evaluation.regression import RegressionEvaluation
from bayestune.files import read_json
from bayestune.model import BayesModel
from bayestune.store import GUARANTEES, model_folder, write_card, write_measured


def record(
    model: BayesModel,
    found: Evaluation | RegressionEvaluation,
    data: Task,
    path: str | Path,
    figure: bytes | None = None,
) -> Path:
    """State what `evaluate` found in the card of the model that was evaluated.

    The numbers go to ``evaluation.json`` beside it, in the place of earlier ones. They are those
    of the model that lies there: saving another in its place drops them, calibrating it keeps them.

    Args:
        model: loaded from there.
        found: what `evaluate` returned for it.
        data: the rows that it was evaluated on.
        path: a run's folder or its ``model`` folder.
        figure: the reliability figure as PNG; without it the card has a table of its bins.

    Returns:
        The card.

    Raises:
        StoreError: if no model lies there, or the files cannot be written.
    """
    folder = model_folder(path)
    kept = found.kept if isinstance(found, Evaluation) else {}
    # On the rows that calibrated it promises look better kept than they are.
    promises = {} if model.guarantees is None or model.guarantees.data == data.hash else kept
    name = data.title if data.source.startswith("hf:") else PurePath(data.title).name
    content: dict[str, Any] = {
        "data": {"name": name, "hash": data.hash, "rows": found.n},
        "settings": model.settings,
        "metrics": {k: v for k, v in found.scalars.items() if k not in kept},
        "intervals": found.intervals,
        "promises": promises,
        "rules": read_json(folder / GUARANTEES)["digest"] if promises else None,
        "bins": _bins(found) if isinstance(found, Evaluation) else [],
    }
    write_measured(folder, content, figure)
    write_card(folder)
    return folder / "README.md"


def _bins(found: Evaluation) -> list[list[float]]:
    """Return low end, high end, rows, mean confidence and accuracy of the bins with rows."""
    result = metrics.reliability(*metrics.top_label(found.prediction.probs, found.targets))
    counts, edges = result.counts.tolist(), result.edges.tolist()
    means = zip(result.confidence.tolist(), result.accuracy.tolist(), strict=True)
    return [
        [edges[b], edges[b + 1], counts[b], *mean] for b, mean in enumerate(means) if counts[b] > 0
    ]
