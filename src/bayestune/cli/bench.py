"""``bayestune bench``: methods × tasks × seeds, resumable at any point."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayestune.cli.console import emit, log, quiet
from bayestune.cli.options import Debug
from bayestune.cli.recipe import layers
from bayestune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bayestune.bench import Cell, Plan


def bench(
    ctx: typer.Context,
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A YAML file, or one that ships: smoke, ….")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe keys for all its trainings."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the cells; default: bench/SUITE.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the files of its tasks lie; what is not there comes from the Hub.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="Hub id, folder, .gguf file or smollm2-135m."),
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
    no_sweep: Annotated[
        bool,
        typer.Option(
            "--no-sweep",
            help="Take the middle one of the learning rates instead of trying all on a seed.",
        ),
    ] = False,
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
    if data is not None and not data.is_dir():
        raise ConfigError(f"There is no folder {data}; --data is where the files of tasks lie.")
    changes = layers(None, {"model": model}, overrides or ())
    with quiet(ctx):
        from bayestune.bench import Plan, load_suite
        from bayestune.bench.table import markdown

        read = load_suite(suite, changes)
        plan = Plan.of(
            read.at_middle_rates() if no_sweep else read,
            out or Path("bench") / read.name,
            _chosen(tasks, read.tasks, "task"),
            _chosen(methods, read.rows, "row"),
            seeds or read.seeds,
        )
        plan.check()
        there = f"{plan.todo()[1]} of {plan.total} trainings are there, in {plan.out}"
        if not dry_run:
            log.info("%s: %s", read.name, there)
            _run(plan, data, device)
    if dry_run:
        emit(there)
        return
    emit(markdown(plan))
    for broken in plan.broken():
        log.info("%s: every learning rate broke off", broken)
    folder = shlex.quote(str(plan.out))
    log.info("curves, costs and recipes: bayestune report %s -o report.html", folder)


def _run(plan: Plan, data: Path | None, device: str | None) -> None:
    from bayestune.bench import run
    from bayestune.progress import shown

    def report(cell: Cell, done: int) -> None:
        what = cell.error or f"held-out NLL {cell.val_nll:.3f}"
        if cell.metrics:
            what = f"NLL {cell.metrics['nll']:.3f}"
        log.info("%d/%d: %s: %s", done, plan.total, cell.key, what)

    devices = [name.strip() for name in device.split(",")] if device else []
    try:
        run(plan, data, devices, report, shown)
    except KeyboardInterrupt as error:
        raise type(error)(
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
