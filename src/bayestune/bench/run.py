"""Does the trainings of a benchmark and writes a cell for each."""

from __future__ import annotations

import gc
import logging
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bayestune.backbone import PrefixCache
from bayestune.bench.cell import MODEL, Cell, Key, arrays_of, read, write
from bayestune.bench.plan import Plan
from bayestune.bench.splits import Splits, read_splits
from bayestune.bench.suite import Suite
from bayestune.data import Task
from bayestune.errors import ConfigError, NumericsError
from bayestune.evaluation import Evaluation, evaluate
from bayestune.finalize import item_nll
from bayestune.model import BayesModel, assemble
from bayestune.prediction import Prediction
from bayestune.progress import Progress, silent
from bayestune.training import fit
from bayestune.training.run import environment

logger = logging.getLogger(__name__)
#: Test rows whose prediction is timed.
_TIMED = 64


@dataclass
class Bench:
    """A benchmark being run on one device.

    Args:
        suite: what it is made of.
        out: its folder.
        data: where the files of its tasks lie; None where all come from the Hub.
        device: where to; the recipe's where None.
        progress: how to report the steps of a training.
    """

    suite: Suite
    out: Path
    data: Path | None = None
    device: str | None = None
    progress: Progress = silent
    _caches: dict[tuple[str, str], PrefixCache] = field(default_factory=dict, repr=False)
    _splits: dict[tuple[str, int], Splits] = field(default_factory=dict, repr=False)

    def cell(self, key: Key) -> Cell:
        """Do one training, measure it on the test rows and write its cell.

        A training whose numbers stop being finite is a cell, too, with the error in the place of
        the metrics.

        Raises:
            ConfigError: if the task predicts numbers.
        """
        spec = self.suite.rows[key.row]
        recipe = self.suite.recipe_of(key.task, key.row, key.seed, key.lr)
        if self.device is not None:
            recipe = replace(recipe, device=self.device)
        splits = self._read(key)
        if splits.train.kind == "regression":
            raise ConfigError(f"{key.task} predicts numbers; a benchmark compares classifiers.")
        model = assemble(recipe, splits.train)
        self._warm(model, key.task, splits)
        start, before = None, 0.0
        if spec.start is not None:
            first = replace(key, row=spec.start)
            start, before = first.folder(self.out) / MODEL, read(first, self.out).seconds
        clock = _clock(model)
        started = clock()
        try:
            run = fit(model, splits.train, val=splits.val, start=start, progress=self.progress)
        except NumericsError as error:
            cell, arrays = self._failed(key, splits, error), {}
        else:
            seconds = before + clock() - started
            cell, arrays = self._measure(key, model, splits, run.history, seconds)
        keep = any(row.start == key.row for row in self.suite.rows.values())
        write(cell, arrays, self.out, model if keep and arrays else None)
        del model
        gc.collect()
        return cell

    def _measure(
        self,
        key: Key,
        model: BayesModel,
        splits: Splits,
        history: list[dict[str, Any]],
        seconds: float,
    ) -> tuple[Cell, dict[str, torch.Tensor]]:
        found = evaluate(model, splits.test, ood=splits.ood, progress=self.progress)
        assert isinstance(found, Evaluation)
        trained = {id(p): p for part in (model.backbone, model.head) for p in part.parameters()}
        weights = model.backbone.weights
        extra = {} if weights is None else weights.tensors()
        held_out = model.predict(splits.val)
        assert isinstance(held_out, Prediction)
        targets = model.targets(splits.val)
        arrays = arrays_of(found.prediction, found.targets, found.ood_predictions)
        arrays |= {"val.probs": held_out.probs.float(), "val.targets": targets}
        cell = Cell(
            key=key,
            val_nll=float(item_nll(held_out.probs, targets).mean()),
            metrics=found.scalars,
            intervals={name: list(ends) for name, ends in found.intervals.items()},
            ood=found.ood,
            cost={
                "train_seconds": seconds,
                "predict_seconds": predict_seconds(model, splits.test),
                "predict_rows": min(_TIMED, len(splits.test)),
                "trained": sum(p.numel() for p in trained.values() if p.requires_grad),
                "stored": sum(t.numel() for t in extra.values()),
            },
            rows=splits.counts,
            chosen=model.notes["chosen"],
            history=history,
            **self.suite.asked(key.task, key.row, key.seed, key.lr),
            environment=environment() | {"device": str(model.backbone.device)},
        )
        return cell, arrays

    def _failed(self, key: Key, splits: Splits, error: NumericsError) -> Cell:
        logger.warning("%s: %s", key, error)
        nothing: dict[str, Any] = {name: {} for name in ("metrics", "intervals", "ood", "cost")}
        return Cell(
            key=key,
            val_nll=math.inf,
            **nothing,
            rows=splits.counts,
            chosen={},
            history=[],
            **self.suite.asked(key.task, key.row, key.seed, key.lr),
            environment=environment(),
            error=str(error),
        )

    def _read(self, key: Key) -> Splits:
        place = key.task, key.seed
        if place not in self._splits:
            self._splits.clear()  # tasks follow one another
            self._splits[place] = read_splits(self.suite.tasks[key.task], self.data, key.seed)
        return self._splits[place]

    def _warm(self, model: BayesModel, task: str, splits: Splits) -> None:
        """Give the model the frozen layers' states of all rows, computed once per task."""
        cache = model.new_cache()
        if cache is None:
            return
        place = task, cache.identity
        if place not in self._caches:
            self._caches.clear()
            self._caches[place] = cache
        model.cache = self._caches[place]
        for name, rows in {**vars(splits), **splits.ood}.items():
            if isinstance(rows, Task):
                label = f"{task}: frozen layers, {name}"
                model.reader().fill(model.encode(rows), progress=self.progress, label=label)


def run(
    plan: Plan,
    data: Path | None = None,
    devices: Sequence[str] = (),
    report: Callable[[Cell, int], None] = lambda cell, done: None,
    progress: Progress = silent,
) -> None:
    """Do all trainings of a plan that are not there yet.

    Args:
        plan: which trainings.
        data: where the files of the tasks lie.
        devices: one worker each, in a process of its own where there are several; none: the
            recipe's, in this process.
        report: told each cell and how many are there.
        progress: how one worker reports the steps of a training; several are silent.
    """
    if len(devices) > 1:
        _side_by_side(plan, data, devices, report)
        return
    bench = Bench(plan.suite, plan.out, data, *devices, progress=progress)
    while True:
        ready, done = plan.todo()
        if not ready:
            return
        report(bench.cell(ready[0]), done + 1)


def _side_by_side(
    plan: Plan,
    data: Path | None,
    devices: Sequence[str],
    report: Callable[[Cell, int], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(
        len(devices), context, _begin, (plan.suite, plan.out, data, free)
    ) as pool:
        busy: dict[Future[Cell], Key] = {}
        while True:
            ready, done = plan.todo()
            for key in [key for key in ready if key not in busy.values()]:
                if len(busy) < len(devices):
                    busy[pool.submit(_work, key)] = key
            if not busy:
                return
            finished, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in finished:
                del busy[future]
                report(future.result(), done + 1)


#: The benchmark of a worker process.
_own: Bench | None = None


def _begin(suite: Suite, out: Path, data: Path | None, free: Any) -> None:
    global _own
    torch.set_num_threads(1)
    _own = Bench(suite, out, data, free.get())


def _work(key: Key) -> Cell:
    assert _own is not None
    return _own.cell(key)


def predict_seconds(model: BayesModel, texts: Task) -> float:
    """Return the median seconds of three predictions of some texts, from the first layer on."""
    some = texts.select(range(min(_TIMED, len(texts))))
    cache, model.cache = model.cache, None
    clock, times = _clock(model), []
    for _ in range(3):
        started = clock()
        model.predict(some)
        times.append(clock() - started)
    model.cache = cache
    return statistics.median(times)


def _clock(model: BayesModel) -> Callable[[], float]:
    """Return what tells the seconds: on a CPU those that this process has used of it.

    Rows are compared by them, and what else runs beside a long benchmark is no part of a row.
    """
    return time.process_time if model.backbone.device.type == "cpu" else time.monotonic
