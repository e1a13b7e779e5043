"""``bayestune methods``: what can be trained."""

from __future__ import annotations

import typer

from bayestune.cli.console import emit_table, quiet
from bayestune.cli.options import Debug


def methods(ctx: typer.Context, debug: Debug = False) -> None:
    """List the methods that `train --method` takes."""
    from rich.table import Table

    with quiet(ctx):
        from bayestune.methods import METHODS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "summary", "source"):
        table.add_column(column, no_wrap=column != "summary")
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.source)
    emit_table(table)
