"""Does the trainings of a benchmark and writes a cell for each."""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bayestune.backbone import PrefixCache
from bayestune.bench.cell import (
    MODEL,
    Cell,
    Key,
    arrays_of,
    is_written,
    read,
    read_arrays,
    write,
)
from bayestune.bench.plan import Plan
from bayestune.bench.record import write_plan
from bayestune.bench.splits import Splits, read_splits
from bayestune.bench.suite import Suite
from bayestune.bench.workers import side_by_side
from bayestune.data import Task
from bayestune.errors import ConfigError, NumericsError
from bayestune.evaluation import Evaluation, evaluate, score
from bayestune.files import tidy
from bayestune.finalize import item_nll
from bayestune.methods.cost import counted
from bayestune.model import BayesModel, assemble
from bayestune.prediction import Prediction
from bayestune.progress import Advance, Progress, silent
from bayestune.store import load
from bayestune.training import fit
from bayestune.training.run import environment

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

        Where its rate is one of several, the test rows are read for the chosen one alone, in a
        second call. A training whose numbers stop being finite is a cell, too, with the error in
        the place of the metrics; so is one that was to start from such a training.

        Raises:
            ConfigError, DataError: if its rows are not as the suite says.
        """
        if is_written(key, self.out) and (key.folder(self.out) / MODEL).is_dir():
            return self._chosen(key)
        spec = self.suite.rows[key.row]
        recipe = self.suite.recipe_of(key.task, key.row, key.seed, key.lr)
        if self.device is not None:
            recipe = replace(recipe, device=self.device)
        splits = self._read(key)
        start, before = None, 0.0
        if spec.start is not None:
            first = replace(key, row=spec.start)
            if broken := read(first, self.out).error:
                cell = self._failed(key, splits, f"{spec.start} broke off: {broken}")
                write(cell, {}, self.out)
                return cell
            start, before = first.folder(self.out) / MODEL, read(first, self.out).seconds
        model = assemble(recipe, splits.train)
        self._warm(model, key.task, splits)
        trained = counted(model.backbone, model.head).trained  # a refresh may put more in its place
        clock = _clock(model)
        started = clock()
        try:
            run = fit(model, splits.train, val=splits.val, start=start, progress=self.progress)
            seconds = before + clock() - started
            cost = {"train_seconds": seconds, "trained": trained}
            cell, arrays = self._trained(key, model, splits, run.history, cost)
            if not (trial := self.suite.is_trial(key.task, key.row, key.seed)):
                cell, arrays = self._measured(cell, arrays, model, splits)
        except NumericsError as error:
            cell, arrays, trial = self._failed(key, splits, str(error)), {}, False
        write(cell, arrays, self.out, model if trial or self._is_start(cell) else None)
        del model
        gc.collect()
        return cell

    def _chosen(self, key: Key) -> Cell:
        """Measure a trial whose rate was chosen; the models of the others are not needed longer."""
        cell, arrays, splits = read(key, self.out), read_arrays(key, self.out), self._read(key)
        device = self.device or cell.recipe["device"]
        model = load(key.folder(self.out) / MODEL, device=device)
        self._warm(model, key.task, splits)
        try:
            cell, arrays = self._measured(cell, arrays, model, splits)
        except NumericsError as error:
            cell, arrays = self._failed(key, splits, str(error)), {}
        write(cell, arrays, self.out, model if self._is_start(cell) else None)
        if not cell.error:
            self._drop_others(key)
        return cell

    def tidy(self, task: str, row: str, lr: float | None) -> None:
        """Do for a row what a killed process left undone; ``lr`` is the rate that was chosen."""
        tidy(self.out / "cells" / task / row)
        key = Key(task, row, 0, lr or 0.0)
        if lr is not None and is_written(key, self.out):
            cell = read(key, self.out)
            if cell.measured and not cell.error:
                self._drop_others(key)

    def _drop_others(self, key: Key) -> None:
        """Remove the models of the rates that were not chosen."""
        for lr in set(self.suite.tried(key.task, key.row)) - {key.lr}:
            shutil.rmtree(replace(key, lr=lr).folder(self.out) / MODEL, ignore_errors=True)

    def _is_start(self, cell: Cell) -> bool:
        starts = (row.start for row in self.suite.rows.values())
        return not cell.error and cell.key.row in starts

    def _trained(
        self,
        key: Key,
        model: BayesModel,
        splits: Splits,
        history: list[dict[str, Any]],
        cost: dict[str, float],
    ) -> tuple[Cell, dict[str, torch.Tensor]]:
        """Return what is known of a training without its test rows."""
        held_out = model.predict(splits.val)
        assert isinstance(held_out, Prediction)
        targets = model.targets(splits.val)
        cell = Cell(
            key=key,
            val_nll=float(item_nll(held_out.probs, targets).mean()),
            metrics={},
            intervals={},
            ood={},
            cost=cost | {"stored": counted(model.backbone, model.head).stored},
            rows=splits.counts,
            chosen=model.notes["chosen"],
            history=history,
            **self.suite.asked(key.task, key.row, key.seed, key.lr),
            environment=environment() | {"device": str(model.backbone.device)},
            rates=list(self.suite.tried(key.task, key.row)),
        )
        return cell, {"val.probs": held_out.probs.float(), "val.targets": targets}

    def _measured(
        self, cell: Cell, arrays: dict[str, torch.Tensor], model: BayesModel, splits: Splits
    ) -> tuple[Cell, dict[str, torch.Tensor]]:
        """Return a trained cell with what its test rows and those from elsewhere say."""
        others = {**splits.ood, **splits.shifted}
        found = evaluate(model, splits.test, ood=others, progress=self.progress)
        assert isinstance(found, Evaluation)
        arrays = arrays | arrays_of(found.prediction, found.targets, found.ood_predictions)
        shifted: dict[str, dict[str, float]] = {}
        for name, rows in splits.shifted.items():
            probs, labels = found.ood_predictions[name], model.targets(rows)
            arrays |= {f"shifted.{name}.probs": probs.probs.float()}
            arrays |= {f"shifted.{name}.targets": labels}
            shifted[name] = score(probs, labels).scalars | found.ood[name]
        timed = {
            "predict_seconds": predict_seconds(model, splits.test),
            "predict_rows": min(_TIMED, len(splits.test)),
        }
        cell = replace(
            cell,
            metrics=found.scalars,
            intervals={name: list(ends) for name, ends in found.intervals.items()},
            ood={name: found.ood[name] for name in splits.ood},
            cost=cell.cost | timed,
            shifted=shifted,
        )
        return cell, arrays

    def _failed(self, key: Key, splits: Splits, error: str) -> Cell:
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
            error=error,
            rates=list(self.suite.tried(key.task, key.row)),
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
        for name, rows in {**vars(splits), **splits.ood, **splits.shifted}.items():
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
        progress: how to report the trainings.

    Raises:
        ConfigError: if a cell that is there was measured on other test rows.
        DataError: if the rows of a task cannot be read or do not suffice, before anything starts.
        BayestuneError: if a worker's process died.
    """
    left = Bench(plan.suite, plan.out)
    for task in plan.tasks:
        for row in plan.rows:
            left.tidy(task, row, plan.rate(task, row))
    ready, done = plan.todo()
    if ready:
        _check_rows(plan, data)
    write_plan(plan)
    if not ready:
        return
    with progress(plan.suite.name, plan.total - done) as advance:
        trained = {key for task in plan.tasks for key in plan.written(task)}

        def told(cell: Cell) -> None:
            nonlocal done
            new = cell.key not in trained  # a trial is told again when it was measured
            trained.add(cell.key)
            done += new
            advance(int(new), str(cell.key))
            report(cell, done)

        if len(devices) > 1:
            side_by_side(plan, Bench(plan.suite, plan.out, data), devices, told)
            return
        bench = Bench(plan.suite, plan.out, data, devices[0] if devices else None)
        while ready:
            bench.progress = _noting(advance, ready[0])
            told(bench.cell(ready[0]))
            ready = plan.todo()[0]


def _check_rows(plan: Plan, data: Path | None) -> None:
    """Read all tasks once, so that none breaks off a benchmark that has run for hours."""
    for task in plan.tasks:
        now = read_splits(plan.suite.tasks[task], data, 0).counts["test_hash"]
        for key in plan.written(task):
            if read(key, plan.out).rows.get("test_hash", now) != now:
                raise ConfigError(
                    f"{key.folder(plan.out)} was measured on other test rows of {task} than are "
                    "there now: give another --out, or remove that folder."
                )


def _noting(advance: Advance, key: Key) -> Progress:
    """Return progress that notes the steps of one training beside that of them all."""

    @contextmanager
    def step(label: str, total: int) -> Iterator[Advance]:
        done = 0

        def forward(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            advance(0, f"{key}: {label} {done}/{total}")

        yield forward

    return step


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
