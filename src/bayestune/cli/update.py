"""``bayestune update``: new labelled rows for a trained model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayestune.cli.console import emit, log, quiet
from bayestune.cli.options import AsJson, Base, BatchSize, Debug, Device, Limit, RunFolder
from bayestune.scoring.output import to_json

if TYPE_CHECKING:
    from bayestune.online import Update


def update(
    ctx: typer.Context,
    run: RunFolder,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="New labelled rows of the same classes: .jsonl, .csv, .parquet or hf:NAME.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new run's folder; without it RUN is updated itself."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Count rows once more that it has learnt from already.")
    ] = False,
    as_json: AsJson = False,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Learn from new labelled rows without training: the posterior of the last layer moves.

    One pass through the backbone per row, no gradient through it, and what earlier rows said is
    kept. The model in RUN is replaced by a complete one or not at all; --out keeps it. Guarantees
    (calibrate) do not survive: run calibrate again, on rows that it has not seen.
    """
    with quiet(ctx):
        from bayestune import online, store
        from bayestune.data import Task
        from bayestune.progress import shown

        log.info("loading %s", run)
        model = store.load(run, base=base, device=device)
        rows = Task.load(data, like=model.task, limit=limit)
        found = online.update(model, rows, again=again, batch_size=batch_size, progress=shown)
        folder = store.save_update(model, run, out)
    if as_json:
        emit(to_json({**asdict(found), "model": str(folder)}))
    else:
        emit("\n".join(_sentences(found, folder)))


def _sentences(found: Update, folder: Path) -> list[str]:
    lines = [
        f"{found.rows} new rows; their mean negative log-likelihood in nats was "
        f"{found.nll_before:.4g} before the model learnt from them and is {found.nll_after:.4g} now"
    ]
    if not found.density:
        lines.append(
            "the density behind ood_score stays as it was: an earlier version stored it, without "
            "counts"
        )
    if found.guarantees_dropped:
        lines.append(
            "sets and abstention are dropped, they were of the model as it was: run bayestune "
            "calibrate again"
        )
    return [*lines, f"saved in {folder}"]
