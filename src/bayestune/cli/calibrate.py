"""``bayestune calibrate``: what a run can promise, by rows that it has not seen."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bayestune.cli.console import emit, log, quiet
from bayestune.cli.options import (
    AsJson,
    Base,
    BatchSize,
    Debug,
    Device,
    Dtype,
    Limit,
    RunFolder,
    Samples,
)
from bayestune.scoring.output import to_json

if TYPE_CHECKING:
    pass


def calibrate(
    ctx: typer.Context,
    run: RunFolder,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Labelled rows that the run has not seen: .jsonl, .csv, .parquet or hf:NAME.",
        ),
    ],
    coverage: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sets hold the true class with this probability."),
    ] = None,
    max_risk: Annotated[
        float | None,
        typer.Option(metavar="R", help="Answer where the error among answers is at most this."),
    ] = None,
    sets: Annotated[
        str, typer.Option(metavar="KIND", help="lac (small), aps (fair to hard rows) or raps.")
    ] = "lac",
    by: Annotated[
        str,
        typer.Option(
            metavar="SCORE",
            help="What decides on an answer: max_prob, entropy, mutual_information or density.",
        ),
    ] = "max_prob",
    confidence: Annotated[
        float, typer.Option(metavar="P", help="With which --max-risk is kept.")
    ] = 0.95,
    as_json: AsJson = False,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    samples: Samples = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Guarantee prediction sets (--coverage), abstention (--max-risk) or both.

    What is found is stored with the model and stated in its card, in the place of what was: predict
    then adds "set" and "abstain" to its rows, and eval measures them. It holds for rows that are
    exchangeable with those of --data.
    """
    with quiet(ctx):
        from bayestune import calibration, store
        from bayestune.data import Task
        from bayestune.guarantees.words import sentences
        from bayestune.progress import shown

        wanted = calibration.Wanted(coverage, max_risk, sets, by, confidence)
        log.info("loading %s", run)
        model = store.load(run, base=base, device=device, dtype=dtype, samples=samples)
        rows = Task.load(data, like=model.task, limit=limit)
        found = calibration.calibrate(
            model, rows, **asdict(wanted), batch_size=batch_size, progress=shown
        )
        file = store.save_guarantees(model, run)
    lines = [f"{len(rows)} calibration rows", *sentences(found), f"saved in {file}"]
    emit(to_json(found.report()) if as_json else "\n".join(lines))
