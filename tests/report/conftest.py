"""Benchmarks made up once per session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_benchmark import ROWS, made_suite, make

from bayestune.bench import Key
from bayestune.bench.table import Entry
from bayestune.report import Report, gather, write_report

#: Names as nobody would give them.
NAMES = (
    "<script>alert(1)<",
    "50% & more_$^{2}~ \\x #1",
    "a | b `c` *d* \"e\" 'f'\n</script>",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks × eight rows × three seeds, of which a few trainings are missing or broke off."""
    out = tmp_path_factory.mktemp("bench")
    make(
        out,
        made_suite(),
        skip=[Key("questions", "ensemble", 2, 0.002), Key("intents", "polar_mle", 0, 0.016)],
        fail=[Key("sentiment", "blob", 0, 0.004), Key("intents", "map", 1, 0.002)],
    )
    return out


@pytest.fixture(scope="session")
def report(folder: Path) -> Report:
    """Its report."""
    return gather(folder)


@pytest.fixture(scope="session")
def page_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(folder, path)
    return path


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report whose names are such that HTML, Markdown and LaTeX would take them for their own.

    A suite has no rows of such names, a folder that someone else made may.
    """
    out = tmp_path_factory.mktemp("hostile")
    rows = {row: ROWS[row] for row in ("map", "ensemble", "blob")}
    fail = [Key("hostile", "blob", 0, 0.004)]
    make(out, made_suite(rows, ["hostile"], seeds=1), rows, fail=fail)
    found = gather(out)
    new = dict(zip(rows, NAMES, strict=True))

    def renamed(entry: Entry) -> Entry:
        return replace(entry, line=replace(entry.line, row=new[entry.line.row]))

    (task,) = found.tasks
    assert task.table is not None
    table = replace(task.table, task=NAMES[0], reference=NAMES[0])
    table = replace(table, entries=tuple(map(renamed, table.entries)))
    methods = tuple(replace(m, entry=renamed(m.entry)) for m in task.methods)
    missing = tuple(f"{line} {' '.join(NAMES)}" for line in task.missing)
    task = replace(task, name=NAMES[0], table=table, methods=methods, missing=missing)
    environment = {name: (value,) for name, value in zip(NAMES, NAMES, strict=True)}
    return replace(
        found,
        name=NAMES[0],
        reference=NAMES[0],
        rows=NAMES,
        shown=NAMES,
        tasks=(task,),
        recipe={**found.recipe, "model": "```" + "".join(NAMES)},
        environment=environment,
    )
