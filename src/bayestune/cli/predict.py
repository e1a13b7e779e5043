"""``bayestune predict``: rows in, rows with their uncertainty out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bayestune.cli.console import log, quiet
from bayestune.cli.options import Base, BatchSize, Debug, Device, Dtype, RunFolder, Samples
from bayestune.cli.partial import Reached, growing_file
from bayestune.errors import ConfigError, DataError, nearest
from bayestune.files import checksum, new_file
from bayestune.scoring.output import output
from bayestune.version import __version__

if TYPE_CHECKING:
    from bayestune.data.rows import RowSource

#: Batches read ahead from a file, so that texts of similar length share a pass.
AHEAD = 16


def predict(
    ctx: typer.Context,
    run: RunFolder,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Rows, labels not needed; - is stdin, the default."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write here, once all is done, instead of stdout: JSON lines, or .parquet. With "
            "--engine a folder of parts.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ray: many FILEs or 'patterns', by several workers."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option("-n", "--workers", metavar="N", min=1, help="With --engine; default 1."),
    ] = 1,
    parts: Annotated[
        str, typer.Option(metavar="FORMAT", help="With --engine: jsonl (the default) or parquet.")
    ] = "jsonl",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 2 (and write no --out) on any bad line.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is done beside --out, and go on from it.")
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
    files = files or ["-"]
    resumable = out is not None and out.suffix.lower() != ".parquet" and Path(files[0]).is_file()
    if resume and (engine is not None or not resumable):
        raise ConfigError(
            "--resume goes on from a FILE on disk with an --out of JSON lines; give both. The "
            "parts of --engine ray go on without it."
        )
    if engine is not None:
        loading = {"base": base, "device": device, "dtype": dtype, "samples": samples}
        _by_engine(ctx, engine, run, files, out, parts, workers, batch_size, loading, strict=strict)
        return
    if len(files) > 1:
        raise ConfigError(f"{len(files)} files are predicted together by --engine ray; give one.")
    results, file = sys.stdout, files[0]
    source = _open(file)
    with quiet(ctx):
        from bayestune import store
        from bayestune.progress import shown, silent
        from bayestune.scoring.job import Job

        log.info("loading %s", run)
        model = store.load(run, base=base, device=device, dtype=dtype, samples=samples)
        job = Job(model, source, batch_size)
        of = _determined_by(run, file, batch_size, device, dtype, samples, base) if resume else {}
        ahead = 1 if file == "-" else AHEAD
        # A bar and the rows themselves would be mixed on a terminal.
        total = 0 if out is None and results.isatty() else _count(file)
        bar = (shown if total else silent)("predicting", total)
        with bar as advance, _results(out or results, of) as (stream, reached, keep):
            advance(job.skip(reached.read, reached.good, reached.bad))
            rows = output(stream, out)
            job.run(rows, ahead * batch_size, advance, keep)
            rows.close()
            job.finish(strict=strict, empty_is_bad=file != "-", written=out is None)
    where = f" in {out}" if out is not None else ""
    log.info("%d rows predicted%s, %d bad lines", job.good, where, job.bad)


def _determined_by(run: str | Path, file: str, *options: Any) -> dict[str, Any]:
    """Return all that the rows of a result follow from."""
    from bayestune.store import model_folder

    parts = [path for path in sorted(model_folder(run).glob("*.json")) if path.is_file()]
    sums = {path.name: checksum(path) for path in parts}
    return {"model": sums, "file": checksum(Path(file)), "options": options, "of": __version__}


@contextmanager
def _results(
    out: Path | TextIO, of: Mapping[str, Any]
) -> Iterator[tuple[TextIO, Reached, Callable[[int, int, int], None]]]:
    """Yield where rows go, how far an earlier process came, and what notes how far this one is."""
    if of and isinstance(out, Path):
        with growing_file(out, of) as growing:
            yield growing
        return
    with new_file(out) if isinstance(out, Path) else nullcontext(out) as stream:
        yield stream, Reached(), lambda read, good, bad: None


def _by_engine(
    ctx: typer.Context,
    engine: str,
    run: str,
    files: list[str],
    out: Path | None,
    parts: str,
    workers: int,
    batch_size: int,
    loading: dict[str, Any],
    *,
    strict: bool,
) -> None:
    if engine != "ray":
        raise ConfigError(f"There is no engine {engine!r}.{nearest(engine, ('ray',))}")
    if parts not in ("jsonl", "parquet"):
        raise ConfigError(f"--parts is {parts!r}; expected jsonl or parquet.")
    if out is None or "-" in files:
        raise ConfigError("--engine ray takes files, and --out, the folder of their parts.")
    with quiet(ctx):
        import torch

        from bayestune.scoring.ray import Settings, score

        run, out = str(Path(run).resolve()), out.resolve()  # for workers in other folders
        settings = Settings(run, str(out), f".{parts}", batch_size, loading)
        gpus = 1.0 if torch.cuda.is_available() and loading["device"] != "cpu" else 0.0
        good, bad = score(settings, files, workers=workers, gpus=gpus, report=log.warning)
    log.info("%d rows predicted in %s, %d bad lines", good, out, bad)
    if good == 0 or (strict and bad):
        raise DataError(f"{bad} of {good + bad} lines are bad; the parts of the others stay.")


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
