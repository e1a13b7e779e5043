"""One training of a benchmark on disk: its numbers, and the predictions behind them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayestune.errors import StoreError
from bayestune.evaluation import SCORES
from bayestune.files import new_folder, read_json, write_json
from bayestune.prediction import Prediction

_NUMBERS = "cell.json"
_ARRAYS = "arrays.safetensors"
_REMEDY = "remove that folder, and the benchmark does its training again."
#: The trained model itself, where other rows start from it or it is not measured yet.
MODEL = "model"


@dataclass(frozen=True, order=True)
class Key:
    """Which training: the task, the row, the seed and the learning rate."""

    task: str
    row: str
    seed: int
    lr: float

    def folder(self, out: Path) -> Path:
        """Return where its cell lies."""
        return out / "cells" / self.task / self.row / f"seed{self.seed}-lr{self.lr:g}"

    def __str__(self) -> str:
        return f"{self.task} {self.row} seed {self.seed} lr {self.lr:g}"


@dataclass(frozen=True)
class Cell:
    """What one training gave.

    Attributes:
        key: which training.
        val_nll: mean NLL of the held-out rows under what is delivered, which chooses the rate.
        metrics: accuracy, calibration and so on of the test rows, in fractions and nats; none
            where another rate was chosen, or none is yet.
        intervals: their 95 % bootstrap intervals.
        ood: metrics of telling other rows apart, by their name.
        cost: seconds of training (the frozen layers' states given; with the training of the
            model it started from) and of predicting, numbers trained and stored.
        rows: how many rows there were.
        chosen: what the training chose.
        history: its epochs.
        recipe: what was asked for.
        spec: the same of its rows; see `TaskSpec`.
        environment: versions and machine.
        error: why there are no metrics, where the training broke off.
        shifted: metrics of labelled rows from elsewhere, and of telling them apart, by name.
        rates: among which the row's was to be chosen when it was trained; one: it was not tuned.
    """

    key: Key
    val_nll: float
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    ood: dict[str, dict[str, float]]
    cost: dict[str, float]
    rows: dict[str, Any]
    chosen: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)
    spec: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)
    error: str = ""
    shifted: dict[str, dict[str, float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether the test rows were read for it, or nothing can be."""
        return bool(self.metrics or self.error)

    @property
    def seconds(self) -> float:
        """What the training took, that of the model it started from included."""
        return self.cost.get("train_seconds", 0.0)


def write(cell: Cell, arrays: dict[str, Tensor], out: Path, model: Any = None) -> None:
    """Write a cell atomically.

    Args:
        cell: its numbers.
        arrays: what `arrays_of` returns.
        out: the benchmark's folder.
        model: to keep with it.
    """
    folder = cell.key.folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as staging:
        save_file({k: v.clone().contiguous() for k, v in arrays.items()}, staging / _ARRAYS)
        if model is not None:
            model.save(staging / MODEL)
        numbers = asdict(cell)
        if cell.error:
            numbers["val_nll"] = None  # JSON has no infinity
        write_json(staging / _NUMBERS, numbers)


def is_written(key: Key, out: Path) -> bool:
    """Return whether a cell is there."""
    return (key.folder(out) / _NUMBERS).is_file()


def read(key: Key, out: Path) -> Cell:
    """Read the numbers of a cell.

    Raises:
        StoreError: if it is missing or damaged.
    """
    folder = key.folder(out)
    try:
        data = read_json(folder / _NUMBERS)
        if data["error"] and data["val_nll"] is None:
            data["val_nll"] = math.inf
        return Cell(**{**data, "key": Key(**data["key"])})
    except (StoreError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is damaged ({error}); {_REMEDY}") from error


def read_arrays(key: Key, out: Path) -> dict[str, Tensor]:
    """Read the predictions behind a cell; see `arrays_of`.

    Raises:
        StoreError: if they are missing or damaged.
    """
    path = key.folder(out) / _ARRAYS
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} is damaged ({error}); {_REMEDY}") from error


def arrays_of(
    inside: Prediction, targets: Tensor, outside: dict[str, Prediction]
) -> dict[str, Tensor]:
    """Return predictions as arrays by name.

    ``probs`` ``(N, K)`` and ``targets`` ``(N,)`` of the test rows; ``aleatoric``, and every score
    of unfamiliarity as ``score.NAME`` of the test rows and ``ood.SET.NAME`` of the others. Cells
    also hold ``val.probs`` and ``val.targets`` of the held-out rows.
    """
    found = {"probs": inside.probs.float(), "targets": targets}
    found["aleatoric"] = inside.aleatoric.float()
    for name, score in SCORES.items():
        found[f"score.{name}"] = score(inside).float()
        for key, other in outside.items():
            found[f"ood.{key}.{name}"] = score(other).float()
    return found
