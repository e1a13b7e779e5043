"""``bayestune predict``: rows in, rows with their uncertainty out."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayestune.cli.console import log, quiet
from bayestune.cli.options import Base, BatchSize, Debug, Device, Dtype, RunFolder, Samples
from bayestune.files import new_file
from bayestune.scoring.output import output

if TYPE_CHECKING:
    from bayestune.data.rows import RowSource

#: Batches read ahead from a file, so that texts of similar length share a pass.
AHEAD = 16


def predict(
    ctx: typer.Context,
    run: RunFolder,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Rows, labels not needed; - is stdin."),
    ] = "-",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write here, once all is done, instead of stdout: JSON lines, or .parquet.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 2 (and write no --out) on any bad line.")
    ] = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    samples: Samples = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Predict labels with their uncertainty, one JSON line per row, in order.

    Input is JSON lines, or .csv and .parquet by their names. A bad line is reported on stderr with
    its number and gets no row; it does not stop the others. Entropies are in nats: entropy =
    aleatoric + epistemic. The higher ood_score, the less familiar the text. Of numbers the mean and
    standard deviations are given: std² = aleatoric² + epistemic².
    """
    results = sys.stdout
    source = _open(file)
    with quiet(ctx):
        from bayestune import store
        from bayestune.progress import shown, silent
        from bayestune.scoring.job import Job

        log.info("loading %s", run)
        model = store.load(run, base=base, device=device, dtype=dtype, samples=samples)
        job = Job(model, source, batch_size)
        ahead = 1 if file == "-" else AHEAD
        # A bar and the rows themselves would be mixed on a terminal.
        total = 0 if out is None and results.isatty() else _count(file)
        bar = (shown if total else silent)("predicting", total)
        with bar as advance, new_file(out) if out else nullcontext(results) as stream:
            rows = output(stream, out)
            job.run(rows, ahead * batch_size, advance)
            rows.close()
            job.finish(strict=strict, empty_is_bad=file != "-", written=out is None)
    where = f" in {out}" if out is not None else ""
    log.info("%d rows predicted%s, %d bad lines", job.good, where, job.bad)


def _open(file: str) -> RowSource:
    from bayestune.data import open_tolerant, read_lines_tolerant
    from bayestune.data.rows import RowSource

    if file != "-":
        return open_tolerant(file)
    if sys.stdin.isatty():
        log.info("reading JSON lines from the terminal; end with Ctrl-D")
    return RowSource("stdin", "line", read_lines_tolerant(sys.stdin))  # pyright: ignore


def _count(file: str) -> int:
    """Return about how many rows a file has, for the bar; 0 where that takes more than a look."""
    path = Path(file)
    if file == "-" or not path.is_file() or path.suffix.lower() == ".parquet":
        return 0
    with path.open("rb") as stream:
        return sum(1 for _ in stream)
