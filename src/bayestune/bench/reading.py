"""Reads and checks the file of a suite."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from bayestune import methods
from bayestune.bench.suite import RowSpec, Suite, TaskSpec
from bayestune.config import AdapterConfig, merge, read_yaml
from bayestune.errors import ConfigError, nearest

#: What a recipe here cannot set, and what sets it instead.
_SET = {"method": "the rows set it", "seed": "seeds sets it", "train.lr": "rates sets it"}
#: What a model that others start from shares with them.
_SAME = ("model", "adapter", "prompt")


def names() -> list[str]:
    """Return the suites that ship with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().glob("*.yaml"))


def load_suite(source: str, changes: Mapping[str, Any] | None = None) -> Suite:
    """Read a suite from a YAML file, or one that ships by its name.

    A file's ``base`` names a shipped suite that lies below it, key by key; rows that it gives take
    the place of that one's.

    Args:
        source: the file or the name.
        changes: nested recipe values laid over those of all tasks and rows.

    Raises:
        ConfigError: naming the key that is unknown, missing or wrong.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        path = _folder() / f"{_shipped(source)}.yaml"
    return read_suite(read_yaml(path), path.stem, str(path), changes)


def _shipped(name: Any) -> str:
    if name not in names():
        raise ConfigError(
            f"There is no suite {name!r}; give a YAML file or one that ships."
            f"{nearest(str(name), names())}"
        )
    return name


def read_suite(
    data: Mapping[str, Any],
    name: str,
    where: str = "the suite",
    changes: Mapping[str, Any] | None = None,
) -> Suite:
    """Check the content of a suite's file; see `load_suite`."""
    if "base" in data:
        below = read_yaml(_folder() / f"{_shipped(data['base'])}.yaml")
        own = {"rows": data["rows"]} if "rows" in data else {}
        data = merge(below, data) | own
    _known(data, ("base", "recipe", "rates", "tasks", "rows", "seeds"), where)
    parts = {key: data.get(key) or {} for key in ("recipe", "rates", "tasks", "rows")}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            raise ConfigError(f"{where}: {key} is {part!r}; expected keys and values.")
    for key in ("tasks", "rows"):
        if not parts[key]:
            raise ConfigError(f"{where}: there are no {key}.")
        for each in parts[key]:
            if not re.fullmatch(r"\w[\w.+-]*", str(each)) or not isinstance(each, str):
                raise ConfigError(
                    f"{where}: {key}.{each} is no name: letters, digits and . + - _ make one, and "
                    "quotes where YAML reads something else."
                )
    kinds = typing.get_args(typing.get_type_hints(AdapterConfig)["kind"])
    _known(parts["rates"], kinds, f"{where}: rates")
    rates = {k: _rates(each, f"{where}: rates.{k}") for k, each in parts["rates"].items()}
    if len({len(each) for each in rates.values()}) > 1:
        raise ConfigError(f"{where}: rates must be equally many for every kind of adapter.")
    tasks = {k: _spec(TaskSpec, each, f"{where}: tasks.{k}") for k, each in parts["tasks"].items()}
    rows = {}
    for key, each in parts["rows"].items():
        at = f"{where}: rows.{key}"
        given = {} if each is None else each
        if not isinstance(given, Mapping):
            raise ConfigError(f"{at} is {each!r}; expected keys and values.")
        given = {"method": key, **given}
        if not isinstance(given.get("rates"), str | None):
            given["rates"] = _rates(given["rates"], f"{at}.rates")
        rows[key] = _spec(RowSpec, given, at)
    for at, recipe in [
        ("recipe", parts["recipe"]),
        *((f"tasks.{key}.recipe", task.recipe) for key, task in tasks.items()),
        *((f"rows.{key}.recipe", row.recipe) for key, row in rows.items()),
    ]:
        _free(recipe, f"{where}: {at}")
    _free(changes or {}, where)
    rows = {k: replace(row, recipe=merge(row.recipe, changes or {})) for k, row in rows.items()}
    suite = Suite(name, parts["recipe"], rates, tasks, rows, data.get("seeds", 3))
    _check(suite, where)
    return suite


def _check(suite: Suite, where: str) -> None:
    if type(suite.seeds) is not int or suite.seeds < 1:
        raise ConfigError(f"{where}: seeds is {suite.seeds!r}; it must be at least 1.")
    for name, row in suite.rows.items():
        for key in ("start", "rates"):
            other = getattr(row, key)
            if isinstance(other, str) and other not in suite.rows:
                raise ConfigError(
                    f"{where}: rows.{name}.{key} names {other!r}, which is no row."
                    f"{nearest(other, suite.rows)}"
                )
        for task in suite.tasks:
            try:
                suite.recipe_of(task, name)
            except ConfigError as error:
                raise ConfigError(f"{where}: rows.{name} on {task}: {error}") from error
    for name in suite.rows:
        _check_start(suite, name, where)
        _check_rates(suite, name, where)


def _check_start(suite: Suite, name: str, where: str) -> None:
    row = suite.rows[name]
    if row.start is None:
        return
    after, first = methods.get(row.method).after, suite.rows[row.start].method
    if first not in after:
        raise ConfigError(
            f"{where}: rows.{name}.start: {row.method} starts from "
            f"{' or '.join(after) or 'no trained model'}, not from {first}."
        )
    for task in suite.tasks:
        mine, other = suite.recipe_of(task, name), suite.recipe_of(task, row.start)
        for section in _SAME:
            if getattr(mine, section) != getattr(other, section):
                raise ConfigError(
                    f"{where}: rows.{name} starts from {row.start}, whose {section} is another on "
                    f"{task}: give both the same."
                )


def _check_rates(suite: Suite, name: str, where: str) -> None:
    for task in suite.tasks:
        seen, at = {name}, name
        try:
            while isinstance(other := suite.rates_of(task, at), str):
                if other in seen:
                    raise ConfigError(f"rows.{name} takes its rate from itself.")
                seen.add(other)
                at = other
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def _spec(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}; expected keys and values.")
    known = fields(kind)
    _known(data, [f.name for f in known], where)
    for f in known:
        if f.default is MISSING and f.default_factory is MISSING and f.name not in data:
            raise ConfigError(f"{where}: {f.name} is missing.")
    try:
        return kind(**{key: value for key, value in data.items() if value is not None})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _free(recipe: Mapping[str, Any], where: str) -> None:
    """Refuse what the suite sets by itself for every training."""
    for key, instead in _SET.items():
        section, _, name = key.rpartition(".")
        part = recipe.get(section) if section else recipe
        if isinstance(part, Mapping) and name in part:
            raise ConfigError(f"{where}: {key} cannot be set here: {instead}.")


def _rates(value: Any, where: str) -> tuple[float, ...]:
    rates: tuple[float, ...] = ()
    if isinstance(value, list | tuple) and not any(isinstance(each, bool) for each in value):
        try:
            rates = tuple(float(each) for each in value)
        except (TypeError, ValueError):
            rates = ()
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ConfigError(f"{where} is {value!r}; expected a list of positive learning rates.")
    if len({f"{rate:g}" for rate in rates}) < len(rates):  # as folders name them
        raise ConfigError(f"{where} is {value!r}; two of them are the same to six digits.")
    return rates


def _known(data: Mapping[str, Any], valid: Any, where: str) -> None:
    for key in data:
        if key not in valid:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(str(key), list(valid))}")


def _folder() -> Path:
    return Path(str(files(__name__.rpartition(".")[0]))) / "suites"
