"""``bayestune export``: a run in the form that other software loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bayestune.cli.console import emit, log, quiet
from bayestune.cli.options import Base, Debug, Device, Dtype, RunFolder


def export(
    ctx: typer.Context,
    run: RunFolder,
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="lora, merged, vllm or gguf-ready.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to create.")],
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="S",
            min=0,
            help="Draws of the adapter's posterior, each a folder; default: its mean, or all "
            "members of an ensemble.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Load what was written and compare it on two texts."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export at DIR.")
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of the largest weight file, such as 5GB."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Write a run for PEFT (lora), transformers (merged), vLLM (vllm) or llama.cpp (gguf-ready).

    The folder's README.md says how it is loaded and what to feed it, its export.json what was kept
    of the model and what was left out. The folder appears whole or not at all.
    """
    with quiet(ctx):
        from bayestune import exports
        from bayestune.progress import shown

        log.info("loading %s", run)
        folder = exports.export(
            run,
            to=to,
            out=out,
            samples=samples,
            overwrite=overwrite,
            check=check,
            shard_size=shard_size,
            base=base,
            device=device,
            dtype=dtype,
            progress=shown,
        )
    emit(f"exported to {folder}")
