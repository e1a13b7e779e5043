"""``bayestune methods``: what can be trained, and what it costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bayestune.cli.console import emit_table, quiet
from bayestune.cli.options import Debug


def methods(
    ctx: typer.Context,
    cost: Annotated[
        bool, typer.Option("--cost", help="Count what each trains and stores on a model.")
    ] = False,
    model: Annotated[
        str, typer.Option(help="With --cost: a Hub id, folder or embedded model; weights unread.")
    ] = "smollm2-135m",
    classes: Annotated[int, typer.Option(min=2, help="With --cost: how many classes.")] = 4,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As in train, for --cost.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List the methods that `train --method` takes, or what they cost beside LoRA."""
    from rich.table import Table

    with quiet(ctx):
        from bayestune.methods import METHODS

        if cost:
            emit_table(_costs(model, classes, overrides or []))
            return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "summary", "source"):
        table.add_column(column, no_wrap=column != "summary")
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.source)
    emit_table(table)


def _costs(model: str, classes: int, overrides: list[str]) -> Any:
    """Return a table of what every method trains and stores beside LoRA."""
    from rich.table import Table

    from bayestune.backbone import resolve
    from bayestune.config import parse_overrides
    from bayestune.methods import METHODS, recipe
    from bayestune.methods.cost import cost

    source, given = resolve(model), parse_overrides(overrides)
    found = {
        name: cost(method, recipe(name, given), source, classes) for name, method in METHODS.items()
    }
    plain = found["mle"].trained
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name")
    for column in ("trained", "stored beside the mean"):
        table.add_column(column, justify="right")
    table.add_column("a prediction passes")
    for name, row in found.items():
        trained = f"{row.trained:,} ({row.trained / plain:.2f}x)"
        table.add_row(name, trained, f"{row.stored:,}", row.passes)
    return table
