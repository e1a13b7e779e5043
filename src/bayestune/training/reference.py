"""How uncertain a model is of rows like its own, against which drift is measured."""

from __future__ import annotations

from typing import Any

from bayestune.finalize import Rows
from bayestune.metrics.drift import SCORES, quantile_points
from bayestune.model import BayesModel

#: Rows that stand for what a model was trained on.
REFERENCE_ROWS = 500


def reference(model: BayesModel, train: Rows, val: Rows | None) -> dict[str, Any]:
    """Return quantiles of every score, over at most 500 rows.

    Args:
        model: the finished model.
        train: its training rows, which serve where none are held out.
        val: the held-out rows.
    """
    rows = val or train
    some = range(0, len(rows), -(-len(rows) // REFERENCE_ROWS))
    observed = model.observe_encoded(rows.encoded.select(some))
    mask = None if rows.mask is None else rows.mask[list(some)]
    found = model.predict_features(observed, mask)
    scores = [name for name in SCORES if hasattr(found, name)]
    points = {name: quantile_points(getattr(found, name)) for name in scores}
    return {"rows": "held-out" if val else "training", "n": len(some), **points}
