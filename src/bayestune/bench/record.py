"""What a benchmark's folder was asked to hold, on disk: its suite, and what of it is wanted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayestune.bench.plan import Plan
from bayestune.bench.reading import read_suite
from bayestune.bench.suite import RowSpec, TaskSpec
from bayestune.errors import ConfigError, StoreError
from bayestune.files import read_json, write_json

_FILE = "suite.json"


def write_plan(plan: Plan) -> None:
    """Write the suite into the benchmark's folder, and all of it that was ever asked for there.

    A part that was asked for earlier stays wanted as long as the suite has it.
    """
    tasks, rows, seeds = set(plan.tasks), set(plan.rows), plan.seeds
    path = plan.out / _FILE
    if path.is_file():
        before = read_plan(plan.out)
        tasks, rows, seeds = (
            tasks | {*before.tasks},
            rows | {*before.rows},
            max(seeds, before.seeds),
        )
    kinds = "tasks", "rows"
    suite = {
        kind: {name: _given(each) for name, each in getattr(plan.suite, kind).items()}
        for kind in kinds
    }
    suite |= {key: getattr(plan.suite, key) for key in ("recipe", "rates", "seeds")}
    wanted = {
        "tasks": [task for task in plan.suite.tasks if task in tasks],
        "rows": [row for row in plan.suite.rows if row in rows],
        "seeds": seeds,
    }
    plan.out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"name": plan.suite.name, "suite": suite, "wanted": wanted})


def _given(spec: TaskSpec | RowSpec) -> dict[str, Any]:
    """Return a spec without what it leaves at None or empty, which are the defaults."""
    return {key: value for key, value in asdict(spec).items() if value not in (None, {})}


def read_plan(out: Path) -> Plan:
    """Read what a benchmark's folder was asked to hold.

    Raises:
        StoreError: if there is no such folder or file, or it is damaged.
    """
    path = out / _FILE
    if not out.is_dir():
        raise StoreError(f"There is no folder {out}; give the one that bench --out named.")
    if not path.is_file():
        raise StoreError(
            f"{path} is missing: {out} is no folder of a benchmark, or of an older version; "
            "`bayestune bench SUITE --out DIR` adds it to trainings that are there."
        )
    data = read_json(path)
    try:
        suite = read_suite(data["suite"], data["name"], str(path))
        wanted = data["wanted"]
        plan = Plan(suite, out, tuple(wanted["tasks"]), tuple(wanted["rows"]), wanted["seeds"])
    except (AttributeError, KeyError, TypeError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {error}.") from error
    if not (set(plan.tasks) <= set(suite.tasks) and set(plan.rows) <= set(suite.rows)):
        raise StoreError(f"{path} is damaged: it wants tasks or rows that its suite does not have.")
    return plan
