"""Which trainings a benchmark needs, and which of them can be done now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bayestune.bench.cell import Key, is_written, read
from bayestune.bench.suite import Suite, completed
from bayestune.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The trainings of a suite, or of a part of it.

    On the first seed a row tries all its rates, each of which is a cell; the others take the one
    whose delivered held-out NLL was lowest.

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
        return cls(suite, out, tuple(tasks), kept, seeds)

    def check(self) -> None:
        """Refuse cells that another suite has left where this one's are to lie.

        Raises:
            ConfigError: naming the first cell and what differs.
        """
        for task in self.tasks:
            for row in self.rows:
                rates = self.suite.rates_of(task, row)
                tried = rates if isinstance(rates, tuple) else (self.rate(task, row),)
                for key in (Key(task, row, s, lr) for s in range(self.seeds) for lr in tried if lr):
                    if is_written(key, self.out):
                        self._compare(key)

    def _compare(self, key: Key) -> None:
        cell = read(key, self.out)
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

    def todo(self) -> tuple[list[Key], int]:
        """Return the trainings that can be done now, in order, and how many are done."""
        ready: list[Key] = []
        done = 0
        for seed in range(self.seeds):
            for task in self.tasks:
                for row in self.rows:
                    for key in self._keys(task, row, seed):
                        if is_written(key, self.out):
                            done += 1
                        elif self._can_start(key):
                            ready.append(key)
        return ready, done

    def _keys(self, task: str, row: str, seed: int) -> list[Key]:
        rates = self.suite.rates_of(task, row)
        if seed == 0 and not isinstance(rates, str):
            return [Key(task, row, 0, lr) for lr in rates]
        lr = self.rate(task, row)
        return [] if lr is None else [Key(task, row, seed, lr)]

    def _can_start(self, key: Key) -> bool:
        start = self.suite.rows[key.row].start
        return start is None or is_written(Key(key.task, start, key.seed, key.lr), self.out)
