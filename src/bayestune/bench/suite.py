"""What a benchmark is made of: tasks, rows of the table, learning rates, seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from bayestune import methods
from bayestune.config import Recipe, from_mapping, merge, read_yaml, to_mapping
from bayestune.errors import ConfigError, nearest

#: The parts of a task that have labels.
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class TaskSpec:
    """Where the rows of one task come from, and what its recipe changes.

    Args:
        train: rows to draw from: a file below the data folder or ``hf:NAME[/CONFIG][:SPLIT]``.
        test: rows to report on; all of them, but for those that stand among the others.
        val: held-out rows; None takes ``val_rows`` of those that training leaves.
        ood: rows of other tasks, by name; their labels are ignored.
        train_rows: how many rows the seed draws; None takes all.
        per_class: how many of each class it draws, instead.
        val_rows: how many held-out rows it draws; None takes all.
        test_rows: how many test rows, the same for all seeds; None takes all.
        ood_rows: how many of each ``ood``, at most, the same for all seeds; None takes all.
        columns: what `Task.load` is told of the columns.
        recipe: recipe values of the task.
    """

    train: str
    test: str
    val: str | None = None
    ood: Mapping[str, str] = field(default_factory=dict)
    train_rows: int | None = None
    per_class: int | None = None
    val_rows: int | None = None
    test_rows: int | None = None
    ood_rows: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train_rows", "per_class", "val_rows", "test_rows", "ood_rows"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1.")
        if self.train_rows is not None and self.per_class is not None:
            raise ConfigError("train_rows and per_class both say what is drawn: give one of them.")
        if self.val is None and self.val_rows is None:
            raise ConfigError("a task needs val, or val_rows to hold out of its training rows.")


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


def completed(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of what `Suite.asked` gave, with the defaults of keys that came later."""
    if part == "recipe":
        return json.loads(json.dumps(to_mapping(from_mapping(values))))
    return json.loads(json.dumps(asdict(TaskSpec(**values))))


def names() -> list[str]:
    """Return the suites that ship with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().glob("*.yaml"))


def load_suite(source: str) -> Suite:
    """Read a suite from a YAML file, or one that ships by its name.

    Raises:
        ConfigError: naming the key that is unknown, missing or wrong.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        if source not in names():
            raise ConfigError(
                f"There is no suite {source!r}; shipped are {', '.join(names())}, or give a "
                f"YAML file.{nearest(source, names())}"
            )
        path = _folder() / f"{source}.yaml"
    return read_suite(read_yaml(path), path.stem, str(path))


def read_suite(data: Mapping[str, Any], name: str, where: str = "the suite") -> Suite:
    """Check the content of a suite's file; see `load_suite`."""
    _known(data, ("recipe", "rates", "tasks", "rows", "seeds"), where)
    for key in ("tasks", "rows"):
        if not data.get(key):
            raise ConfigError(f"{where}: there are no {key}.")
    rates = {kind: _rates(each, f"{where}: rates.{kind}") for kind, each in data["rates"].items()}
    tasks = {
        key: _spec(TaskSpec, each, f"{where}: tasks.{key}") for key, each in data["tasks"].items()
    }
    rows = {}
    for key, each in data["rows"].items():
        given = {"method": key, **(each or {})}
        if isinstance(given.get("rates"), list):
            given["rates"] = _rates(given["rates"], f"{where}: rows.{key}.rates")
        rows[key] = _spec(RowSpec, given, f"{where}: rows.{key}")
    suite = Suite(name, data.get("recipe", {}), rates, tasks, rows, data.get("seeds", 3))
    _check(suite, where)
    return suite


def _check(suite: Suite, where: str) -> None:
    if type(suite.seeds) is not int or suite.seeds < 1:
        raise ConfigError(f"{where}: seeds is {suite.seeds!r}; it must be at least 1.")
    if len({len(rates) for rates in suite.rates.values()}) > 1:
        raise ConfigError(f"{where}: rates must be equally many for every kind of adapter.")
    for name, row in suite.rows.items():
        for key in ("start", "rates"):
            other = getattr(row, key)
            if isinstance(other, str) and other not in suite.rows:
                raise ConfigError(f"{where}: rows.{name}.{key} names {other!r}, which is no row.")
        if row.start is not None:
            after, first = methods.get(row.method).after, suite.rows[row.start].method
            if first not in after:
                raise ConfigError(
                    f"{where}: rows.{name}.start: {row.method} starts from "
                    f"{' or '.join(after) or 'no trained model'}, not from {first}."
                )
        for task in suite.tasks:
            suite.recipe_of(task, name)
            seen = {name}
            while isinstance(other := suite.rates_of(task, name), str):
                name = other
                if name in seen:
                    raise ConfigError(f"{where}: rows.{name} takes its rate from itself.")
                seen.add(name)


def _spec(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}; expected keys and values.")
    _known(data, [f.name for f in fields(kind)], where)
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition('() ')[2]}.") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _rates(value: Any, where: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(rate) for rate in value)
    except (TypeError, ValueError):
        rates = ()
    if not rates or min(rates) <= 0:
        raise ConfigError(f"{where} is {value!r}; expected a list of positive learning rates.")
    return rates


def _known(data: Mapping[str, Any], valid: Any, where: str) -> None:
    for key in data:
        if key not in valid:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(str(key), list(valid))}")


def _folder() -> Path:
    return Path(str(files(__name__.rpartition(".")[0]))) / "suites"
