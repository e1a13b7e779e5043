"""From the folder of a benchmark to the contents of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayestune.bench import Cell, Key, Plan, is_written, read, read_arrays, read_plan
from bayestune.bench.table import Entry, Table, table
from bayestune.errors import ConfigError, StoreError, nearest
from bayestune.report import curves
from bayestune.report.contents import Method, Report, TaskReport, Trial
from bayestune.report.missing import missing

#: What an epoch measures.
QUANTITIES = ("train_nll", "val_nll", "val_accuracy", "stable_rank")
#: Recipe values that trainings of one row differ in by design.
_DIFFERENT = ("seed", "train.lr")
#: What training chose; see `Run`.
_CHOSEN = ("best_epoch", "kl", "temperature", "covariance", "value")
#: So many rows can be shown together; of more, the reference and the best.
_TOGETHER, _BEST = 8, 5


def gather(out: Path, reference: str | None = None) -> Report:
    """Read a benchmark as far as it is there.

    Args:
        out: its folder.
        reference: the row that times and differences are relative to; the first where None.

    Raises:
        StoreError: if it is no benchmark, holds no training or a damaged one.
        ConfigError: if it has no such row.
    """
    plan = read_plan(out)
    if reference is not None and reference not in plan.rows:
        raise ConfigError(f"The benchmark has no row {reference!r}.{nearest(reference, plan.rows)}")
    done = plan.todo()[1]
    if not done:
        raise StoreError(f"{out} holds no finished training yet: run bayestune bench.")
    reference = reference or plan.rows[0]
    tables = {task: table(plan, task, reference) for task in plan.tasks}
    entries = [entry for each in tables.values() if each for entry in each.entries]
    recipes = [flat(entry.line.cells[0].recipe) for entry in entries]
    common = _common(recipes)
    return Report(
        name=plan.suite.name,
        reference=reference,
        rows=plan.rows,
        shown=_shown(plan, reference, [each for each in tables.values() if each]),
        tasks=tuple(_task(plan, task, found, common) for task, found in tables.items()),
        seeds=plan.seeds,
        done=done,
        total=plan.total,
        coverages=curves.COVERAGES,
        rates=curves.RATES,
        recipe=common,
        environment=_environment(cell for entry in entries for cell in entry.line.cells),
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _task(plan: Plan, task: str, found: Table | None, common: Mapping[str, Any]) -> TaskReport:
    entries = found.entries if found else ()
    methods = tuple(_method(plan, entry, common) for entry in entries)
    spec = methods[0].entry.line.cells[0].spec if methods else {}
    return TaskReport(task, found, methods, spec, missing(plan, task))


def _method(plan: Plan, entry: Entry, common: Mapping[str, Any]) -> Method:
    cells = entry.line.cells
    seeds = [read_arrays(cell.key, plan.out) for cell in cells]
    own = flat(cells[0].recipe)
    return Method(
        entry=entry,
        point=curves.is_point(seeds),
        reliability=curves.reliability(seeds),
        risk=curves.risk(seeds),
        unfamiliar=curves.unfamiliar(seeds),
        epochs=tuple(_epochs(cell.history) for cell in cells),
        trials=_trials(plan, cells[0].key),
        chosen=_chosen(cells),
        recipe={k: v for k, v in own.items() if k not in common and k not in _DIFFERENT},
    )


def _epochs(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float | None, ...]]:
    """Return what each epoch measured, averaged over the members of an ensemble."""
    last = max((row["epoch"] for row in history), default=0)
    found = {}
    for name in QUANTITIES:
        values = [
            [r[name] for r in history if r["epoch"] == n and r.get(name) is not None]
            for n in range(1, last + 1)
        ]
        if any(values):
            found[name] = tuple(sum(each) / len(each) if each else None for each in values)
    return found


def _trials(plan: Plan, key: Key) -> tuple[Trial, ...]:
    rates = plan.suite.rates_of(key.task, key.row)
    found = []
    for lr in sorted(rates) if isinstance(rates, tuple) else ():
        tried = Key(key.task, key.row, 0, lr)
        if is_written(tried, plan.out):
            nll = read(tried, plan.out).val_nll
            found.append(Trial(lr, nll if math.isfinite(nll) else None, lr == key.lr))
    return tuple(found)


def _chosen(cells: Sequence[Cell]) -> dict[str, tuple[Any, ...]]:
    values = [flat(cell.chosen) for cell in cells]
    names = [name for name in values[0] if name in _CHOSEN or name.startswith("weights.")]
    return {name: tuple(each.get(name) for each in values) for name in names}


def _common(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not recipes:
        return {}
    first, *others = recipes
    return {
        key: value
        for key, value in first.items()
        if key not in _DIFFERENT and all(key in o and o[key] == value for o in others)
    }


def _shown(plan: Plan, reference: str, tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the rows that charts show at first: the reference and those of the best mean rank."""
    ranks: dict[str, list[int]] = {}
    for each in tables:
        order = sorted(each.entries, key=lambda entry: entry.values["NLL"].mean)
        for rank, entry in enumerate(order):
            ranks.setdefault(entry.line.row, []).append(rank)
    if len(ranks) <= _TOGETHER:
        return tuple(row for row in plan.rows if row in ranks)
    best = sorted(ranks, key=lambda row: sum(ranks[row]) / len(ranks[row]))[:_BEST]
    return tuple(row for row in plan.rows if row in best or row == reference)


def _environment(cells: Iterable[Cell]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in cell.environment.items():
            found.setdefault(name, set()).add(str(value))
    return {name: tuple(sorted(values)) for name, values in found.items()}
