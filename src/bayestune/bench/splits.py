"""The rows of a benchmark's task: drawn by the seed, and nothing of the test set among them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayestune.bench.suite import PARTS, Rows, TaskSpec
from bayestune.data import Example, Task
from bayestune.data.quickstart import quickstart_path
from bayestune.errors import ConfigError, DataError

_SHIPPED = "quickstart:"


@dataclass(frozen=True)
class Splits:
    """The rows of one task and seed.

    Attributes:
        train: rows to train on.
        val: rows to choose by.
        test: rows to report on.
        ood: rows from elsewhere, by name.
        shifted: labelled rows from elsewhere, by name.
        dropped: how many rows were left out of ``train`` and ``val`` because they stand in the
            test set (or, held out, among those trained on), and of shifted rows because they have
            more choices than the task.
        sources: which file or data set each part was read from.
    """

    train: Task
    val: Task
    test: Task
    ood: dict[str, Task]
    shifted: dict[str, Task]
    dropped: dict[str, int]
    sources: dict[str, str]

    @property
    def counts(self) -> dict[str, Any]:
        """How many rows there are, and a hash of the test rows, for the record."""
        parts = {part: len(getattr(self, part)) for part in PARTS}
        sets = {
            kind: {name: len(rows) for name, rows in getattr(self, kind).items()}
            for kind in ("ood", "shifted")
        }
        return {
            **parts,
            **sets,
            "dropped": self.dropped,
            "sources": self.sources,
            "test_hash": self.test.hash[:16],
        }


def read_splits(spec: TaskSpec, folder: Path | None, seed: int) -> Splits:
    """Read a task's rows and draw those of a seed.

    Test rows are the same for all seeds. A row of the training or held-out pool whose content
    stands in the test set is dropped before anything is drawn.

    Args:
        spec: where they come from and how many are drawn.
        folder: where files lie; None where none is named.
        seed: of the draw.

    Raises:
        ConfigError: if a file is named alone and there is no folder, or the task predicts numbers.
        DataError: if rows cannot be read, or are fewer than asked for.
    """
    named = {"train": spec.train, "val": spec.val, "test": spec.test, **spec.ood, **spec.shifted}
    sources = {part: choose(rows, folder) for part, rows in named.items() if rows is not None}
    places = {part: _place(source, folder) for part, source in sources.items()}
    pool = Task.load(places["train"], **spec.columns)
    if pool.kind == "regression":
        raise ConfigError(f"{pool.title} holds numbers; a benchmark compares classifiers.")
    test = Task.load(places["test"], like=pool)
    if spec.test_rows is not None:
        test = _draw(test, spec.test_rows, random.Random(0))
    seen = {_content(example) for example in test}
    pool, dropped = _without(pool, seen)
    rng = random.Random(seed)
    train, rest = _split(pool, spec, rng)
    val, lost = rest, 0
    if spec.val is not None:
        val, lost = _without(Task.load(places["val"], like=pool), seen)
    val, more = _without(val, {_content(example) for example in train})
    if spec.val_rows is not None:
        val = _draw(val, spec.val_rows, rng)
    for part, rows in (("train on", train), ("choose by", val)):
        if not len(rows):
            raise DataError(f"{pool.title}: no rows are left to {part}.")
    ood = {name: _outside(places[name], pool, spec) for name in spec.ood}
    left_out = {"train": dropped, "val": lost + more}
    shifted: dict[str, Task] = {}
    for name in spec.shifted:
        shifted[name], lost = _shifted(places[name], pool, spec)
        left_out |= {name: lost} if lost else {}
    return Splits(train, val, test, ood, shifted, left_out, sources)


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
        for label, name in enumerate(pool.labels.names):
            found = len(taken.get(label, ()))
            if found < spec.per_class:
                raise DataError(
                    f"{pool.title}: {spec.per_class} rows of each class are asked for, of {name!r} "
                    f"{found} can be taken."
                )
        chosen = {i for of in taken.values() for i in of}
    elif spec.train_rows is not None:
        chosen = set(rng.sample(order, _enough(pool, spec.train_rows)))
    elif spec.val is None:
        # Held-out rows come out of the training rows, which must not keep them nor their doubles.
        places = {_content(example): i for i, example in reversed(list(enumerate(pool)))}
        distinct = pool.select(sorted(places.values()))
        left = {_content(example) for example in _draw(distinct, spec.val_rows or 0, rng)}
        chosen = {i for i, example in enumerate(pool) if _content(example) not in left}
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


def _shifted(source: str, pool: Task, spec: TaskSpec) -> tuple[Task, int]:
    """Read rows whose labels are the task's classes; of choices, those that it has letters for."""
    if pool.kind != "choice":
        return Task.load(source, like=pool), 0
    rows = Task.load(source, **spec.columns)
    keep = [i for i, row in enumerate(rows) if len(row.choices or ()) <= len(pool.labels)]
    return replace(rows.select(keep), labels=pool.labels), len(rows) - len(keep)


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


def choose(rows: Rows, folder: Path | None) -> str:
    """Return the first of several sources that is there, or else the last one.

    Raises:
        ConfigError: if that is a file and there is no folder.
    """
    *preferred, last = [rows] if isinstance(rows, str) else rows
    for source in preferred:
        if _is_named(source) or (folder is not None and (folder / source).is_file()):
            return source
    if folder is None and not _is_named(last):
        raise ConfigError(f"{last} is a file: give the folder that holds it (--data DIR).")
    return last


def _is_named(source: str) -> bool:
    return source.startswith(("hf:", _SHIPPED))


def _place(source: str, folder: Path | None) -> str:
    if source.startswith(_SHIPPED):
        return str(quickstart_path(source.removeprefix(_SHIPPED)))
    return source if folder is None or _is_named(source) else str(folder / source)
