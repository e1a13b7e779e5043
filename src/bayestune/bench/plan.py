"""Which trainings a benchmark needs, and which of them can be done now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bayestune.bench.cell import MODEL, Key, is_written, read
from bayestune.bench.suite import Suite, completed
from bayestune.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The trainings of a suite, or of a part of it.

    On the first seed a row tries all its rates, each of which is a cell; the one whose delivered
    held-out NLL was lowest is measured on the test rows, and the other seeds take it.

    Args:
        suite: the suite.
        out: where its cells lie.
        tasks: the tasks asked for.
        rows: the rows asked for, in the suite's order, with those that they need.
        seeds: how many.
    """

    suite: Suite
    out: Path
    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: int

    @classmethod
    def of(
        cls, suite: Suite, out: Path, tasks: Sequence[str], rows: Sequence[str], seeds: int
    ) -> Plan:
        """Plan tasks and rows, adding the rows whose rate or models those asked for take."""
        asked = set(rows)
        while True:
            found = {suite.rates_of(task, row) for task in tasks for row in asked}
            more = {name for name in found if isinstance(name, str)} - asked
            if not more:
                break
            asked |= more
        kept = tuple(row for row in suite.rows if row in asked)
        return cls(suite, out, tuple(dict.fromkeys(tasks)), kept, seeds)

    def check(self) -> None:
        """Refuse cells that another suite has left where this one's are to lie.

        Raises:
            ConfigError: naming the first cell and what differs.
            StoreError: if a cell is damaged.
        """
        for task in self.tasks:
            for key in self.written(task):
                self._compare(key)

    def written(self, task: str) -> Iterator[Key]:
        """Yield the cells of a task that are there."""
        for row in self.rows:
            for lr in self.suite.tried(task, row):
                for key in (Key(task, row, seed, lr) for seed in range(self.seeds)):
                    if is_written(key, self.out):
                        yield key

    def _compare(self, key: Key) -> None:
        cell = read(key, self.out)
        waiting = any(
            self.suite.rows[row].start == key.row
            and not is_written(replace(key, row=row), self.out)
            for row in self.rows
        )
        used = waiting and not cell.error and self.rate(key.task, key.row) in (None, key.lr)
        if used and cell.measured and not (key.folder(self.out) / MODEL).is_dir():
            raise ConfigError(
                f"{key.folder(self.out)} was trained before any row started from {key.row} and "
                "kept no model: remove that folder to train it again."
            )
        asked = self.suite.asked(key.task, key.row, key.seed, key.lr)
        for part, values in asked.items():
            found = completed(part, getattr(cell, part))
            for name, value in values.items():
                if found.get(name) != value:
                    raise ConfigError(
                        f"{key.folder(self.out)} is of another suite: its {name} is "
                        f"{found.get(name)!r}, here it is {value!r}. Give another --out, or remove "
                        "that folder."
                    )

    @property
    def total(self) -> int:
        """How many trainings there are in all."""
        first = sum(
            1 if isinstance(rates, str) else len(rates)
            for task in self.tasks
            for row in self.rows
            for rates in [self.suite.rates_of(task, row)]
        )
        return first + (self.seeds - 1) * len(self.tasks) * len(self.rows)

    def rate(self, task: str, row: str) -> float | None:
        """Return the rate of a row; None as long as not all have been tried."""
        rates = self.suite.rates_of(task, row)
        if isinstance(rates, str):
            return self.rate(task, rates)
        keys = [Key(task, row, 0, lr) for lr in rates]
        if not all(is_written(key, self.out) for key in keys):
            return None
        tried = {key.lr: read(key, self.out).val_nll for key in keys}
        best = min(tried, key=tried.__getitem__)
        return best if math.isfinite(tried[best]) else None

    def broken(self) -> list[str]:
        """Return the tasks and rows that have no rate: when all is done, every one broke off."""
        rows = [(task, row) for task in self.tasks for row in self.rows]
        return [f"{task} {row}" for task, row in rows if self.rate(task, row) is None]

    def todo(self) -> tuple[list[Key], int]:
        """Return what can be trained or measured now, in order, and how many trainings are done."""
        ready: list[Key] = []
        done = 0
        for seed in range(self.seeds):
            for task in self.tasks:
                for row in self.rows:
                    for key in self._keys(task, row, seed):
                        written = is_written(key, self.out)
                        done += written
                        if self._is_to_measure(key) if written else self._can_start(key):
                            ready.append(key)
        return ready, done

    def _keys(self, task: str, row: str, seed: int) -> list[Key]:
        rates = self.suite.rates_of(task, row)
        if seed == 0 and not isinstance(rates, str):
            return [Key(task, row, 0, lr) for lr in rates]
        lr = self.rate(task, row)
        return [] if lr is None else [Key(task, row, seed, lr)]

    def _is_to_measure(self, key: Key) -> bool:
        return not read(key, self.out).measured and key.lr == self.rate(key.task, key.row)

    def _can_start(self, key: Key) -> bool:
        start = self.suite.rows[key.row].start
        return start is None or is_written(Key(key.task, start, key.seed, key.lr), self.out)
