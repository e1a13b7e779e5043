"""The rows of a benchmark's task: drawn by the seed, and nothing of the test set among them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayestune.bench.suite import PARTS, TaskSpec
from bayestune.data import Example, Task
from bayestune.errors import ConfigError, DataError


@dataclass(frozen=True)
class Splits:
    """The rows of one task and seed.

    Attributes:
        train: rows to train on.
        val: rows to choose by.
        test: rows to report on.
        ood: rows from elsewhere, by name.
        dropped: how many rows were left out of ``train`` and ``val`` because they stand in the
            test set (or, held out, among those trained on).
    """

    train: Task
    val: Task
    test: Task
    ood: dict[str, Task]
    dropped: dict[str, int]

    @property
    def counts(self) -> dict[str, Any]:
        """How many rows there are, for the record."""
        parts = {part: len(getattr(self, part)) for part in PARTS}
        outside = {name: len(rows) for name, rows in self.ood.items()}
        return {**parts, "ood": outside, "dropped": self.dropped}


def read_splits(spec: TaskSpec, folder: Path | None, seed: int) -> Splits:
    """Read a task's rows and draw those of a seed.

    Test rows are the same for all seeds. A row of the training or held-out pool whose content
    stands in the test set is dropped before anything is drawn.

    Args:
        spec: where they come from and how many are drawn.
        folder: where files lie; None where all come from the Hub.
        seed: of the draw.

    Raises:
        ConfigError: if a file is named and there is no folder.
        DataError: if rows cannot be read, or are fewer than asked for.
    """
    pool = Task.load(_place(spec.train, folder), **spec.columns)
    test = Task.load(_place(spec.test, folder), like=pool)
    if spec.test_rows is not None:
        test = _draw(test, spec.test_rows, random.Random(0))
    seen = {_content(example) for example in test}
    pool, dropped = _without(pool, seen)
    rng = random.Random(seed)
    train, rest = _split(pool, spec, rng)
    val, lost = rest, 0
    if spec.val is not None:
        val, lost = _without(Task.load(_place(spec.val, folder), like=pool), seen)
    val, more = _without(val, {_content(example) for example in train})
    if spec.val_rows is not None:
        val = _draw(val, spec.val_rows, rng)
    ood = {name: _outside(_place(rows, folder), pool, spec) for name, rows in spec.ood.items()}
    return Splits(train, val, test, ood, {"train": dropped, "val": lost + more})


def _split(pool: Task, spec: TaskSpec, rng: random.Random) -> tuple[Task, Task]:
    """Return the rows that are drawn and those that are left."""
    order = list(range(len(pool)))
    if spec.per_class is not None:
        rng.shuffle(order)
        taken: dict[int, list[int]] = {}
        for i in order:
            of = taken.setdefault(pool.targets[i], [])
            if len(of) < spec.per_class:
                of.append(i)
        chosen = {i for of in taken.values() for i in of}
    elif spec.train_rows is not None:
        chosen = set(rng.sample(order, _enough(pool, spec.train_rows)))
    elif spec.val is None:
        # Held-out rows come out of the training rows, which must not keep them.
        left = set(rng.sample(order, _enough(pool, (spec.val_rows or 0) + 1) - 1))
        chosen = set(order) - left
    else:
        chosen = set(order)
    rest = [i for i in range(len(pool)) if i not in chosen]
    return pool.select(sorted(chosen)), pool.select(rest)


def _outside(source: str, pool: Task, spec: TaskSpec) -> Task:
    """Read rows whose labels, if they have any, are of another task."""
    options = {k: v for k, v in spec.columns.items() if k not in ("label", "answer", "labels")}
    options |= {"kind": pool.kind, "require_labels": False}
    if pool.kind == "choice":
        rows = Task.load(source, answer=None, **options)
    else:
        rows = Task.load(source, label=None, labels=pool.labels, **options)
    return _draw(rows, min(spec.ood_rows or len(rows), len(rows)), random.Random(0))


def _draw(task: Task, count: int, rng: random.Random) -> Task:
    return task.select(sorted(rng.sample(range(len(task)), _enough(task, count))))


def _enough(task: Task, count: int) -> int:
    if count > len(task):
        raise DataError(f"{task.title}: {count} rows are asked for, {len(task)} can be taken.")
    return count


def _without(task: Task, seen: Iterable[Any]) -> tuple[Task, int]:
    known = set(seen)
    keep = [i for i, example in enumerate(task) if _content(example) not in known]
    return task.select(keep), len(task) - len(keep)


def _content(example: Example) -> tuple[Any, ...]:
    return (example.text, example.text2, example.question, example.choices, example.passage)


def _place(name: str, folder: Path | None) -> str:
    if name.startswith("hf:"):
        return name
    if folder is None:
        raise ConfigError(f"{name} is a file: give the folder that holds it (--data DIR).")
    return str(folder / name)
