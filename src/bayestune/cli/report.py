"""``bayestune report``: what a benchmark found, as a page, Markdown or LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bayestune.cli.console import log, quiet
from bayestune.cli.options import Debug


def report(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What bench --out named.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="To write: .html, .md or .tex."),
    ] = Path("report.html"),
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="What times and differences are relative to; default: the first."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write what a benchmark found so far: tables, curves, costs, recipes, and what is missing.

    Only DIR is read. The page needs no network and no other file.
    """
    with quiet(ctx):
        from bayestune.report import write_report

        write_report(folder, out, reference)
    log.info("written: %s", out)
