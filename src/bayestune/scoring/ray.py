"""Predicting many files by the workers of Ray Data.

What goes through Ray is which slice to do and what became of it. A worker reads the slice itself
and writes its part atomically under a name of its own, with a note beside it when it is done: a
slice that is done twice, because a worker died or was taken for dead, leaves one part, and none is
lost, as Ray gives what a worker did not finish to another. A job that is started again does what
has no note.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bayestune.errors import ConfigError, StoreError
from bayestune.files import checksum, new_file, read_json, write_json
from bayestune.scoring.output import Output, output
from bayestune.scoring.places import expand, name_of, state
from bayestune.scoring.slices import Slice, slices

PLAN = "plan.json"
#: Batches of a worker that are read ahead, so that texts of similar length share a pass.
AHEAD = 16


@dataclass(frozen=True)
class Settings:
    """What every worker is told.

    Attributes:
        run: the run's folder.
        out: the folder of the parts.
        suffix: of the parts, ``.jsonl`` or ``.parquet``.
        batch_size: texts in a pass.
        options: further arguments of `bayestune.load`.
    """

    run: str
    out: str
    suffix: str
    batch_size: int
    options: Mapping[str, Any]


class Scorer:
    """One worker: a model, and slices one after another."""

    def __init__(self, settings: Settings) -> None:
        from bayestune.store import load

        self.settings = settings
        self.model = load(settings.run, **settings.options)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Predict slices, given by their fields; return what became of them."""
        fields = list(batch)
        each = [
            Slice(**dict(zip(fields, (_plain(v) for v in values), strict=True)))
            for values in zip(*batch.values(), strict=True)
        ]
        done = [self.score(one) for one in each]
        return {key: [row[key] for row in done] for key in ("good", "bad", "problems")}

    def score(self, some: Slice) -> dict[str, Any]:
        """Predict one slice, write its part, then the note that it is done."""
        from bayestune.progress import silent
        from bayestune.scoring.job import Job

        folder, problems = Path(self.settings.out), list[str]()
        job = Job(self.model, some.source(), self.settings.batch_size, report=problems.append)
        path = folder / f"{some.name}{self.settings.suffix}"
        with new_file(path) as stream, silent("", 0) as advance:
            rows = _Named(output(stream, path), name_of(some.file))
            job.run(rows, AHEAD * self.settings.batch_size, advance)
            rows.close()
        note = {**asdict(some), "good": job.good, "bad": job.bad, "problems": problems}
        write_json(folder / f"{some.name}.json", note)
        return note


class _Named:
    """Rows that say which file they are of, as the number of a line is no name among many."""

    def __init__(self, inner: Output, file: str) -> None:
        self.inner, self.file = inner, file
        self.close = inner.close

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.inner.put([{"file": self.file, **row} for row in rows])


def score(
    settings: Settings,
    files: Sequence[str],
    *,
    workers: int,
    rows: int = 10_000,
    gpus: float = 0.0,
    report: Callable[[str], None],
    scorer: type[Scorer] = Scorer,
) -> tuple[int, int]:
    """Predict files into the parts of a folder, or what is missing of them.

    Args:
        settings: what every worker is told.
        files: names, URLs and patterns of JSON lines or Parquet, which all workers can read.
        workers: how many there are, each with a model of its own.
        rows: of a slice.
        gpus: of a worker, or the share of one.
        report: takes the sentence about each bad row.
        scorer: what a worker is.

    Returns:
        How many rows were predicted, and how many could not be, in earlier attempts too.

    Raises:
        ConfigError: if Ray is not installed.
        DataError: if a file cannot be cut.
        StoreError: if another job's parts lie in the folder.
    """
    data = _ray(workers)
    plan = {"run": _digest(settings.run), "options": dict(settings.options), "rows": rows}
    files = expand(files)
    plan |= {"files": [[file, *state(file)] for file in files]}
    _claim(Path(settings.out), {**plan, "suffix": settings.suffix})
    todo, good, bad = list[Slice](), 0, 0
    for some in slices(files, rows):
        note = Path(settings.out, f"{some.name}.json")
        if not note.exists():
            todo.append(some)
            continue
        found = read_json(note)
        good, bad = good + found["good"], bad + found["bad"]
    for note in _done(data, todo, scorer, settings, workers, gpus):
        good, bad = good + note["good"], bad + note["bad"]
        for problem in note["problems"]:
            report(problem)
    for half in Path(settings.out).glob(".part-*"):  # of workers that were killed
        half.unlink(missing_ok=True)
    return good, bad


def _done(
    data: Any,
    todo: list[Slice],
    scorer: type[Scorer],
    settings: Settings,
    workers: int,
    gpus: float,
) -> Iterator[dict[str, Any]]:
    if not todo:
        return iter(())
    items = data.from_items([asdict(s) for s in todo], override_num_blocks=min(len(todo), 10_000))
    done = items.map_batches(
        scorer,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, len(todo))),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    return iter(done.iter_rows())


def _ray(workers: int) -> Any:
    """Return Ray Data, of the cluster that RAY_ADDRESS names or of one that is started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'bayestune[ray]'.") from error
    if not ray.is_initialized():
        local = {"num_cpus": workers + 1, "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data


def _claim(out: Path, plan: dict[str, Any]) -> None:
    if (out / PLAN).exists():
        if read_json(out / PLAN) != plan:
            raise StoreError(
                f"{out} holds the parts of another job (its {PLAN} names another run, other files "
                "or options); give another folder."
            )
        return
    if out.exists() and any(out.iterdir()):
        raise StoreError(f"{out} is not empty and holds no {PLAN}; give a new folder.")
    write_json(out / PLAN, plan)


def _digest(run: str) -> str:
    from bayestune.store.guarantees import GUARANTEES
    from bayestune.store.manifest import model_folder, read_manifest

    folder = model_folder(run)
    promises = folder / GUARANTEES
    kept = checksum(promises) if promises.exists() else ""
    return read_manifest(folder)["digest"] + kept


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
