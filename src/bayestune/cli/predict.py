"""``bayestune predict``: rows in, rows with their uncertainty out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bayestune.cli.console import log, quiet, to_json
from bayestune.cli.options import Base, BatchSize, Debug, Device, Dtype, RunFolder, Samples
from bayestune.cli.partial import Reached, growing_file
from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.files import checksum, new_file
from bayestune.version import __version__

if TYPE_CHECKING:
    from bayestune.data import Example
    from bayestune.data.rows import RowSource
    from bayestune.model import BayesModel
    from bayestune.progress import Advance

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
        typer.Option(metavar="FILE", help="Write here, once all is done, instead of stdout."),
    ] = None,
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
    if resume and (out is None or not Path(file).is_file()):
        raise ConfigError("--resume goes on with an --out of a FILE on disk; give both.")
    results = sys.stdout
    source = _open(file)
    with quiet(ctx):
        from bayestune import store
        from bayestune.progress import shown, silent

        log.info("loading %s", run)
        model = store.load(run, base=base, device=device, dtype=dtype, samples=samples)
        job = Job(model, source, batch_size)
        of = _determined_by(run, file, batch_size, device, dtype, samples, base) if resume else {}
        ahead = 1 if file == "-" else AHEAD
        # A bar and the rows themselves would be mixed on a terminal.
        total = 0 if out is None and results.isatty() else _count(file)
        bar = (shown if total else silent)("predicting", total)
        with bar as advance, _results(out or results, of) as (stream, reached, keep):
            advance(job.skip(reached))
            job.run(stream, ahead * batch_size, advance, keep)
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


@dataclass
class Job:
    """Rows of one source through one model.

    Attributes:
        model: predicts.
        source: rows, or the errors of bad ones.
        batch_size: texts in a pass.
        good: rows predicted so far.
        bad: lines that could not be.
        read: rows of the source so far.
    """

    model: BayesModel
    source: RowSource
    batch_size: int
    good: int = 0
    bad: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self._rows = iter(self.source.rows)

    def skip(self, reached: Reached) -> int:
        """Pass over what an earlier process read, whose counts go on; return how many rows."""
        self.read, self.good, self.bad = reached.read, reached.good, reached.bad
        return sum(1 for _ in islice(self._rows, reached.read))

    def run(
        self,
        stream: TextIO,
        chunk: int,
        advance: Advance,
        keep: Callable[[int, int, int], None] = lambda read, good, bad: None,
    ) -> None:
        """Predict everything, holding only ``chunk`` rows at a time; ``keep`` is told of each."""
        examples = self._examples()
        while some := list(islice(examples, chunk)):
            for row in self._predict(some):
                self.good += 1
                stream.write(to_json(row) + "\n")
            stream.flush()
            keep(self.read, self.good, self.bad)
            advance(len(some))

    def finish(self, *, strict: bool, empty_is_bad: bool, written: bool) -> None:
        """Stop where nothing was usable, or where a bad line is not to be tolerated."""
        if self.good == 0 and (self.bad or empty_is_bad):
            found = f"none of its {self.bad} lines" if self.bad else "it is empty: nothing"
            raise DataError(f"{self.source.name}: {found} can be predicted.")
        if strict and self.bad:
            kept = "the other rows were written" if written else "no file was written"
            raise DataError(
                f"{self.source.name}: {self.bad} of {self.good + self.bad} lines are bad; {kept}."
            )

    def _examples(self) -> Iterator[tuple[str, Example]]:
        """Read one row after another; whatever labels they have are not looked at."""
        task = self.model.task.unlabelled()
        item: Any
        for number, item in self._rows:
            self.read += 1
            where = self.source.where(number)
            try:
                if isinstance(item, DataError):
                    raise item
                untyped = self.source.untyped
                yield where, task.parse(item, number, where, untyped=untyped)
            except DataError as error:
                self._report(str(error))

    def _predict(self, some: list[tuple[str, Example]]) -> Iterator[dict[str, Any]]:
        """Predict examples together; where that fails, one by one to find those at fault."""
        examples = tuple(example for _, example in some)
        try:
            task = replace(self.model.task, examples=examples)
            prediction = self.model.predict(task, self.batch_size)
        except (DataError, NumericsError) as error:
            if len(some) == 1:
                self._report(f"{some[0][0]}: {error}")
            else:
                for one in some:
                    yield from self._predict([one])
            return
        yield from prediction.rows([example.id for example in examples])

    def _report(self, problem: str) -> None:
        self.bad += 1
        log.warning("%s", problem)
