"""What a benchmark is made of: tasks, rows of the table, learning rates, seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from bayestune import methods
from bayestune.config import Recipe, from_mapping, merge, to_mapping
from bayestune.errors import ConfigError

#: The parts of a task that have labels.
PARTS = ("train", "val", "test")

#: A file below the data folder, ``hf:NAME[/CONFIG][:SPLIT]`` or ``quickstart:FILE``, which ships;
#: or several of them, of which the first that is there is read. What is on the Hub counts as there.
Rows = str | Sequence[str]


@dataclass(frozen=True)
class TaskSpec:
    """Where the rows of one task come from, and what its recipe changes.

    Args:
        train: rows to draw from.
        test: rows to report on; all of them, but for those that stand among the others.
        val: held-out rows; None takes ``val_rows`` of those that training leaves.
        ood: rows of other tasks, by name; their labels are ignored.
        shifted: labelled rows of other tasks with the same classes, by name: measured as test rows
            are. Those with more choices than the task has are left out.
        train_rows: how many rows the seed draws; None takes all.
        per_class: how many of each class it draws, instead.
        val_rows: how many held-out rows it draws; None takes all.
        test_rows: how many test rows, the same for all seeds; None takes all.
        ood_rows: how many of each ``ood``, at most, the same for all seeds; None takes all.
        columns: what `Task.load` is told of the columns.
        recipe: recipe values of the task.
    """

    train: Rows
    test: Rows
    val: Rows | None = None
    ood: Mapping[str, Rows] = field(default_factory=dict)
    shifted: Mapping[str, Rows] = field(default_factory=dict)
    train_rows: int | None = None
    per_class: int | None = None
    val_rows: int | None = None
    test_rows: int | None = None
    ood_rows: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _sections(self, "ood", "shifted", "columns", "recipe")
        named = {} if self.val is None else {"val": self.val}
        named |= {"train": self.train, "test": self.test}
        for name, rows in chain(named.items(), self.ood.items(), self.shifted.items()):
            _sources(name, rows)
        for name in ("train_rows", "per_class", "val_rows", "test_rows", "ood_rows"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1.")
        if self.train_rows is not None and self.per_class is not None:
            raise ConfigError("train_rows and per_class both say what is drawn: give one of them.")
        if self.val is None and self.val_rows is None:
            raise ConfigError("a task needs val, or val_rows to hold out of its training rows.")
        names = [*PARTS, *self.ood, *self.shifted]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two sets of rows are called {twice[0]!r}: give them two names.")


@dataclass(frozen=True)
class RowSpec:
    """One row of the table: a method and what is changed of its defaults.

    Args:
        method: a name from ``bayestune methods``.
        recipe: recipe values of the row.
        rates: learning rates to try, or the row whose rate is taken; None: the suite's for the
            method's adapter.
        start: the row whose trained models this one starts from, at their rate.
    """

    method: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] | str | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        _texts(self, "method", "start")
        _sections(self, "recipe")
        if self.start is not None and self.rates is not None:
            raise ConfigError("start and rates both say at which rate: give one of them.")


@dataclass(frozen=True)
class Suite:
    """Methods × tasks × seeds.

    Args:
        name: of the suite.
        recipe: values for all methods and tasks.
        rates: learning rates by kind of adapter, equally many.
        tasks: by name.
        rows: by name, in the order of the table.
        seeds: how many.
    """

    name: str
    recipe: Mapping[str, Any]
    rates: Mapping[str, tuple[float, ...]]
    tasks: Mapping[str, TaskSpec]
    rows: Mapping[str, RowSpec]
    seeds: int = 3

    def recipe_of(self, task: str, row: str, seed: int = 0, lr: float | None = None) -> Recipe:
        """Return the recipe of one training."""
        spec = self.rows[row]
        last = {"seed": seed} | ({} if lr is None else {"train": {"lr": lr}})
        return methods.recipe(
            spec.method, merge(self.recipe, self.tasks[task].recipe, spec.recipe, last)
        )

    def asked(self, task: str, row: str, seed: int, lr: float) -> dict[str, Any]:
        """Return all that determines a training, as plain values: its recipe and its rows."""
        found = {"recipe": to_mapping(self.recipe_of(task, row, seed, lr))}
        found["spec"] = asdict(self.tasks[task])
        return json.loads(json.dumps(found))  # as it reads back

    def rates_of(self, task: str, row: str) -> tuple[float, ...] | str:
        """Return the rates that a row tries, or the row whose rate it takes."""
        spec = self.rows[row]
        if spec.start is not None:
            return spec.start
        if spec.rates is not None:
            return spec.rates
        kind = self.recipe_of(task, row).adapter.kind
        if kind not in self.rates:
            raise ConfigError(f"rows.{row} adapts by {kind!r}, and rates has none for that.")
        return self.rates[kind]

    def tried(self, task: str, row: str) -> tuple[float, ...]:
        """Return the rates among which that of a row is chosen: one where it is not tuned."""
        rates = self.rates_of(task, row)
        return self.tried(task, rates) if isinstance(rates, str) else rates

    def is_trial(self, task: str, row: str, seed: int) -> bool:
        """Return whether a training is one of several among which the row's rate is chosen."""
        rates = self.rates_of(task, row)
        return seed == 0 and not isinstance(rates, str) and len(rates) > 1

    def at_middle_rates(self) -> Suite:
        """Return the suite in which every row has the middle one of its rates alone."""
        rates = {kind: _middle(each) for kind, each in self.rates.items()}
        rows = {
            name: replace(row, rates=_middle(row.rates)) if isinstance(row.rates, tuple) else row
            for name, row in self.rows.items()
        }
        return replace(self, rates=rates, rows=rows)


def completed(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of what `Suite.asked` gave, with the defaults of keys that came later."""
    if part == "recipe":
        return json.loads(json.dumps(to_mapping(from_mapping(values))))
    return json.loads(json.dumps(asdict(TaskSpec(**values))))


def _sources(name: Any, rows: Any) -> None:
    given = rows if isinstance(rows, list | tuple) and rows else [rows]
    if not all(isinstance(each, str) for each in [name, *given]):
        raise ConfigError(f"{name} is {rows!r}; expected the name of a source, or a list of them.")


def _texts(spec: Any, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, str | None):
            raise ConfigError(f"{name} is {value!r}; expected text.")


def _sections(spec: Any, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}; expected keys and values.")


def _middle(rates: tuple[float, ...]) -> tuple[float, ...]:
    return (sorted(rates)[(len(rates) - 1) // 2],)
