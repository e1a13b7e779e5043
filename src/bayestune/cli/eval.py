"""``bayestune eval``: how good and how honest a run is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayestune.cli.console import complain, emit, emit_table, log, quiet
from bayestune.cli.options import (
    AsJson,
    Base,
    BatchSize,
    Debug,
    Device,
    Dtype,
    RunFolder,
    Samples,
)
from bayestune.cli.reporting import GATE_FAILED
from bayestune.errors import ConfigError, DataError
from bayestune.files import new_file
from bayestune.scoring.output import to_json

if TYPE_CHECKING:
    from bayestune.data import Task
    from bayestune.evaluation import Evaluation, RegressionEvaluation
    from bayestune.model import BayesModel


def evaluate(
    ctx: typer.Context,
    run: RunFolder,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Labelled rows: .jsonl, .csv, .parquet or hf:NAME[/CONFIG][:SPLIT].",
        ),
    ],
    ood: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="Rows from elsewhere, labels ignored; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
    max_ece: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1, help="Exit with 3 if the ECE is larger."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the JSON object here.")
    ] = None,
    card: Annotated[
        bool,
        typer.Option("--card", help="Also state the numbers in the model's card (README.md)."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Read the first N rows of each file."),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    samples: Samples = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Measure accuracy, calibration and out-of-distribution detection.

    Fractions and nats; ECE with 15 right-closed bins. Rows given by --ood are the positives; FPR95
    is the share of them accepted at the confidence that keeps 95 % of the rows of --data.
    Predicted numbers are scored in their own unit: rmse, mae, nll, crps and coverage90, the share
    inside the central 90 % interval.
    """
    others = _named(ood or ())
    with quiet(ctx):
        from bayestune import calibration, evaluation, store
        from bayestune.data import Task
        from bayestune.progress import shown

        log.info("loading %s", run)
        model = store.load(run, base=base, device=device, dtype=dtype, samples=samples)
        if max_ece is not None and model.task.kind == "regression":
            raise ConfigError("--max-ece is about classes; predicted numbers have no ECE.")
        rows = Task.load(data, like=model.task, **_first(limit))
        if card and calibration.seen(model, rows):
            raise DataError(
                f"{data} holds the rows that the run was trained on or chosen by: a card states "
                "what it is worth on others."
            )
        if model.guarantees is not None and model.guarantees.data == rows.hash:
            log.warning(
                "%s calibrated this run: on it promises look better kept than they are", data
            )
        outside = {name: _unlabelled(file, model.task, limit) for name, file in others.items()}
        found = evaluation.evaluate(model, rows, ood=outside, batch_size=batch_size, progress=shown)
        written = None
        if card:
            written = evaluation.record(model, found, rows, run, _figure(model, found))
    text = to_json(found.to_json())
    if out is not None:
        with new_file(out) as stream:
            emit(text, stream)
    if as_json:
        emit(text)
    else:
        emit_table(*_tables(found))
    if written is not None:
        log.info("%s states these numbers", written)
    if max_ece is not None and isinstance(found, evaluation.Evaluation) and found.ece > max_ece:
        complain(f"the gate failed: ECE is {found.ece:.4f}, more than --max-ece {max_ece:g}.")
        raise typer.Exit(GATE_FAILED)


def _figure(model: BayesModel, found: Evaluation | RegressionEvaluation) -> bytes | None:
    """Return the reliability figure as PNG; None for numbers, and where nothing can draw it."""
    from bayestune.evaluation import Evaluation
    from bayestune.plots import reliability_figure

    if not isinstance(found, Evaluation) or find_spec("matplotlib") is None:
        return None
    content = io.BytesIO()
    reliability_figure({model.method.name: found}).savefig(content, format="png")
    return content.getvalue()


def _named(pairs: Sequence[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not (equals and name.strip() and file):
            raise ConfigError(f"--ood {pair!r} is not of the form NAME=FILE, as in oos=oos.jsonl.")
        if name.strip() in files:
            raise ConfigError(f"--ood names {name.strip()!r} twice; give each file its own name.")
        files[name.strip()] = file
    return files


def _first(limit: int | None) -> dict[str, Any]:
    return {} if limit is None else {"limit": limit}


def _unlabelled(file: str, like: Task, limit: int | None) -> Task:
    """Read rows from elsewhere: whatever labels they have are of other classes."""
    from bayestune.data import Task

    ignored = {"answer": None} if like.kind == "choice" else {"label": None}
    return Task.load(file, like=like, require_labels=False, **ignored, **_first(limit))


def _tables(found: Evaluation | RegressionEvaluation) -> list[Any]:
    from rich.table import Table

    from bayestune.evaluation import Evaluation

    scalars = Table(box=None, pad_edge=False, header_style="bold")
    scalars.add_column("metric")
    scalars.add_column("value", justify="right")
    scalars.add_column("95 % interval", justify="right")
    # Shares and nats have a size that is known; numbers have that of their unit.
    form = ".4f" if isinstance(found, Evaluation) else ".4g"
    for name, value in found.scalars.items():
        scalars.add_row(name, f"{value:{form}}", _between(found.intervals.get(name), form))
    scalars.caption = f"{found.n} rows"
    scalars.caption_justify = "left"
    if not found.ood:
        return [scalars]
    outside = Table(box=None, pad_edge=False, header_style="bold")
    outside.add_column("out of distribution")
    for name, prediction in found.ood_predictions.items():
        outside.add_column(f"{name} ({len(prediction)} rows)", justify="right")
    for metric in next(iter(found.ood_intervals.values())):
        cells = [
            f"{found.ood[name][metric]:.4f}  {_between(intervals[metric])}"
            for name, intervals in found.ood_intervals.items()
        ]
        outside.add_row(metric, *cells)
    return [scalars, "", outside]


def _between(ends: tuple[float, float] | None, form: str = ".4f") -> str:
    return "" if ends is None else f"{ends[0]:{form}} – {ends[1]:{form}}"
