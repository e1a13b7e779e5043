"""Options that several verbs share."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

_KEY = "bayestune.debug"


def debugging(ctx: typer.Context) -> bool:
    """Return whether tracebacks and the libraries' own messages are wanted."""
    return bool(ctx.meta.get(_KEY)) or os.environ.get("BAYESTUNE_DEBUG", "0") not in ("", "0")


def _note_debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.meta[_KEY] = True
        logging.getLogger("bayestune").setLevel(logging.DEBUG)
    return value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=_note_debug,
        is_eager=True,
        help="Show tracebacks and what other libraries say; also BAYESTUNE_DEBUG=1.",
    ),
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder or its model folder.")
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="M", help="Another place to take the same backbone from."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps; default: as trained."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Of the frozen weights: float32, bfloat16 or float16; default: as trained.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="S",
        min=0,
        help="Draws of the posterior, 0 for its mean; default: as the recipe says.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Read the first N rows.")]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", metavar="N", min=1, help="Texts in a pass; changes speed, not results."
    ),
]
