"""What the tests of benchmarks ask again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bayestune.bench import Cell, Key, Suite
from bayestune.bench.cell import MODEL, write


def made_cell(
    suite: Suite,
    out: Path,
    key: Key,
    val_nll: float = 1.0,
    *,
    losses: Sequence[float] = (0.5, 0.7),
    error: str = "",
    metrics: Mapping[str, float] | None = None,
    seconds: float = 2.0,
    ood: Sequence[str] = ("foreign",),
) -> Cell:
    """Write a cell of a training that never was: losses are the NLL of each test row."""
    names = ("accuracy", "nll", "ece", "adaptive_ece", "mce", "brier", "aurc")
    scalars = dict.fromkeys(names, 0.5) | {"nll": sum(losses) / len(losses)} | dict(metrics or {})
    scores = ("max_prob", "mutual_information", "density", "entropy")
    outside = {name: {f"auroc_{score}": 0.75 for score in scores} for name in ood}
    cell = Cell(
        key=key,
        val_nll=math.inf if error else val_nll,
        metrics={} if error else scalars,
        intervals={},
        ood={} if error else outside,
        cost={}
        if error
        else {"train_seconds": seconds, "predict_seconds": 1.0, "trained": 1234, "stored": 5},
        rows={"train": 45, "val": 20, "test": len(losses), "ood": dict.fromkeys(ood, 12)},
        chosen={},
        history=[],
        **suite.asked(key.task, key.row, key.seed, key.lr),
        environment={},
        error=error,
        rates=list(suite.tried(key.task, key.row)),
    )
    probs = torch.tensor([[math.exp(-loss), -math.expm1(-loss)] for loss in losses])
    arrays = {"probs": probs, "targets": torch.zeros(len(losses), dtype=torch.long)}
    # Held-out rows are like the test rows.
    write(cell, arrays | {f"val.{name}": array for name, array in arrays.items()}, out)
    if not error and any(row.start == key.row for row in suite.rows.values()):
        (key.folder(out) / MODEL).mkdir()
    return cell


def numbers(cell: Cell) -> dict[str, Any]:
    """Return what of a cell does not depend on the machine or the time."""
    history = [{k: v for k, v in row.items() if "seconds" not in k} for row in cell.history]
    cost = {k: v for k, v in cell.cost.items() if "seconds" not in k}
    # The digest of the model that it started from covers the times in its notes.
    chosen = {k: v for k, v in cell.chosen.items() if k != "started_from"}
    return {
        **{k: getattr(cell, k) for k in ("key", "val_nll", "metrics", "intervals", "ood", "rows")},
        **{k: getattr(cell, k) for k in ("recipe", "spec", "error", "rates")},
        "history": history,
        "cost": cost,
        "chosen": chosen,
    }
