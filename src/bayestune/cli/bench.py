"""``bayestune bench``: methods × tasks × seeds, resumable at any point."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayestune.cli.console import emit, log, quiet
from bayestune.cli.options import Debug
from bayestune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bayestune.bench import Cell, Plan


def bench(
    ctx: typer.Context,
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A YAML file, or one that ships.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="For the cells.")] = Path("bench"),
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the files of its tasks lie.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Rows of the suite, with those they need; default: all."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Tasks of the suite; default: all.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many; default: the suite's.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="auto, cpu, cuda:0, …; several work side by side."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what is there and what is missing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train and measure what is not there yet, and print the table of what is.

    Every training is written as it finishes; a command that was stopped goes on where it was.
    """
    with quiet(ctx):
        from bayestune.bench import Plan, load_suite
        from bayestune.bench.table import markdown

        read = load_suite(suite)
        plan = Plan.of(
            read,
            out,
            _chosen(tasks, read.tasks, "task"),
            _chosen(methods, read.rows, "row"),
            seeds or read.seeds,
        )
        plan.check()
        done = plan.todo()[1]
        log.info("%s: %d of %d trainings are there, in %s", suite, done, plan.total, out)
        if dry_run:
            return
        _run(plan, data, device)
        text = markdown(plan)
    emit(text)
    log.info("curves, costs and recipes: bayestune report %s -o report.html", shlex.quote(str(out)))


def _run(plan: Plan, data: Path | None, device: str | None) -> None:
    from bayestune.bench import run
    from bayestune.progress import shown

    started, first = time.monotonic(), plan.todo()[1]

    def report(cell: Cell, done: int) -> None:
        each = (time.monotonic() - started) / (done - first)
        left = each * (plan.total - done)
        what = f"NLL {cell.metrics['nll']:.3f}" if cell.metrics else cell.error
        log.info("%d/%d, %s left: %s: %s", done, plan.total, _clock(left), cell.key, what)

    try:
        run(plan, data, device.split(",") if device else [], report, shown)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {plan.out} holds all trainings that were complete: run the same command "
            "again to go on."
        ) from None


def _chosen(asked: str | None, valid: Iterable[str], kind: str) -> list[str]:
    if asked is None:
        return list(valid)
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in valid:
            raise ConfigError(f"The suite has no {kind} {name!r}.{nearest(name, valid)}")
    return names


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
