"""One fit in progress: what is read, what is chosen, what is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bayestune.config import to_mapping
from bayestune.data import Task
from bayestune.errors import ModelError
from bayestune.finalize import Features, Rows
from bayestune.head import GenerativeHead
from bayestune.head.precision import wide_device
from bayestune.methods import Parts
from bayestune.metrics import Density, fit_density
from bayestune.model import BayesModel
from bayestune.peft import adapter_report, summarise
from bayestune.posterior.observed import LogitDraws, LogitMoments
from bayestune.posterior.regression import RegressionPredictive
from bayestune.processes import ALONE, Processes
from bayestune.progress import Advance, Progress, silent
from bayestune.training.checkpoint import restore, rng_state, set_rng_state, trainable
from bayestune.training.choose import candidates, delivered_losses, epochs_of, largest, race_epochs
from bayestune.training.loop import Loop
from bayestune.training.members import optimise_members
from bayestune.training.reference import reference
from bayestune.training.resume import (
    Found,
    candidate,
    interrupted,
    proceed,
    run_epoch,
    save_state,
)
from bayestune.training.rows import prepare, start, weights_of_classes
from bayestune.training.run import CHECKPOINT, RACE, Journal, Run, environment
from bayestune.training.sharing import features, fill
from bayestune.training.together import require_same
from bayestune.training.trackers import Trackers, flat
from bayestune.weights import MemberWeights

logger = logging.getLogger(__name__)


class Session:
    """One fit in progress.

    Args:
        model: the model being trained.
        train: training examples.
        val: held-out examples, or None.
        journal: writes the run's folder.
        progress: how to report.
        trackers: where epochs are logged besides; None for nowhere.
        processes: those that train together; the first of them writes and reports.
    """

    def __init__(
        self,
        model: BayesModel,
        train: Task,
        val: Task | None,
        journal: Journal,
        progress: Progress,
        trackers: Trackers | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.recipe = model.recipe
        self.journal = journal
        self.processes = processes
        self.progress = progress if processes.first else silent
        self.trackers = Trackers((), None) if trackers is None else trackers
        self.rows = prepare(model, train, self.recipe.train.class_weights)
        self.val = prepare(model, val) if val is not None else None
        self.kappa = 0.0
        self.kappas: dict[str, float] = {}
        self.facts: dict[str, Any] = {"train_hash": train.hash, "val_hash": None}
        if val is not None:
            self.facts["val_hash"] = val.hash
        if self.rows.weights is not None:  # later rows are to count alike
            spec = self.recipe.train.class_weights
            per_class = weights_of_classes(spec, train.labels, self.rows.labels)
            self.facts["class_weights"] = per_class.tolist()  # pyright: ignore
        self.own_cache = model.cache is None
        if self.own_cache:
            model.cache = model.new_cache()
        self.reader = model.reader()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_tensors: dict[str, Tensor] = {}
        self.member = 0  # of an ensemble
        self.losses = torch.empty(0)  # of the held-out rows, as last validated

    @property
    def epochs(self) -> int:
        """How many epochs there are to train, the last one perhaps cut short."""
        return epochs_of(self.recipe.train, len(self.rows))

    @property
    def seed(self) -> int:
        """The seed of the training in progress; members of runs with near seeds have their own."""
        return self.recipe.seed + 1009 * self.member

    def run(
        self, *, resume: bool, overwrite: bool, started: float, begun: Mapping[str, Any] | None
    ) -> Run:
        """Do all steps in order, or those after a training that has ``begun`` it; see `fit`."""
        out = self.journal.out
        require_same(self.model, self.facts, self.processes)
        with self.processes.first_before_others():
            found = interrupted(self) if resume else {}
        if resume and not found:
            logger.warning("%s holds no state to continue from; the run starts anew", out)
        self.journal.require_free(overwrite=overwrite or resume)
        with self._tracked():
            self.journal.open(self.recipe, self.facts, resumed=bool(found))
            chosen = self._train_and_finish(found, begun)
            self.trackers.log({"epoch": self.epochs, **flat(chosen)}, "final/")
        if out is not None and self.journal.writes:
            self.model.save(out / "model")
            self.journal.close()
        self.processes.wait()  # for a model that can be loaded
        if self.own_cache:
            self.model.cache = None
        return Run(out, self.recipe, self.history, chosen, time.monotonic() - started)

    def _train_and_finish(
        self, found: Mapping[str, Found], begun: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        device = self.model.backbone.device
        # The caller's global random numbers stay as they were.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if begun is None:
                self.optimise(found)
            else:
                self._fill_cache()
        if self.best_tensors:
            restore(self.model.backbone, self.model.head, self.best_tensors)
        chosen = {
            "kl": self.kappa,
            "kl_tried": self.kappas,
            **{f"best_{k}": v for k, v in self.best.items()},
            **(begun or {}),
        }
        chosen |= self.finalize()
        self.model.notes = {
            "chosen": chosen,
            "data": {**self.facts, **self._counts()},
            "reference": reference(self.model, self.rows, self.val),
        }
        return chosen

    def _counts(self) -> dict[str, int]:
        return {"train_rows": len(self.rows), "val_rows": 0 if self.val is None else len(self.val)}

    def _tracked(self) -> AbstractContextManager[None]:
        """Hold the trackers open, the run's recipe, data and versions stored with them."""
        config = {**to_mapping(self.recipe), **self.facts, **self._counts(), **environment()}
        out, method = self.journal.out, self.model.method.name
        name = f"{method}-{self.recipe.seed}" if out is None else out.resolve().name
        return self.trackers.started(name, config, ["bayestune", method, self.model.task.kind])

    def _track(self, rows: Iterable[dict[str, Any]], at: str = "") -> None:
        """Log rows of epochs, those of an ensemble's members apart."""
        members = isinstance(self.model.backbone.weights, MemberWeights)
        for row in rows:
            member = f"member_{row.get('member', 0)}/" if members else ""
            self.trackers.log(row, at + member)

    def optimise(self, found: Mapping[str, Found] = MappingProxyType({})) -> None:
        """Fill the cache, choose the KL weight and train to the last epoch.

        Args:
            found: states to continue from: of the training, or of candidates for the KL weight.
        """
        self._fill_cache()
        weights = self.model.backbone.weights
        if isinstance(weights, MemberWeights):
            optimise_members(self, weights, found)
        else:
            self.optimise_one(found)

    def optimise_one(self, found: Mapping[str, Found]) -> None:
        """Train the model, or the member of an ensemble that it is now, to the last epoch."""
        if CHECKPOINT in found:
            loop = proceed(self, *found[CHECKPOINT])
            self.journal.truncate(self.history)
            self._track(self.history)
        else:
            torch.manual_seed(self.seed)
            # Features as training starts set the units of prior, posterior and rates.
            some = list(range(0, len(self.rows), max(1, len(self.rows) // 512)))
            phi = features(self.reader, self.rows.encoded.select(some), self.processes)
            start(self.model.head, self.rows, phi, some)
            loop = self._race(candidates(self.model), found)
            if loop.epoch > 0:
                self._track(self.history)
                save_state(self, loop, CHECKPOINT)
                self.journal.drop(RACE)
        self._train(loop)

    def finalize(self) -> dict[str, Any]:
        """Finish the posterior and fit the density on cached features; return what was chosen."""
        settled, device, logits = self._settle(), self.model.backbone.device, None
        weights, tempered = self.model.backbone.weights, self.recipe.finalize.temperature == "auto"
        if self.val is not None and weights is not None and tempered:
            logits = self._observe(self.val)
        self.model.head.to(wide_device(device))  # and the features go where the head is
        fit_rows = self.rows.features(self.features(self.rows, "features, training"))
        val_rows = None if self.val is None else self.val.features(self.features(self.val))
        if val_rows is not None and logits is not None:
            val_rows = replace(val_rows, logits=logits.to(val_rows.phi.device))
        head, report = self.model.method.finalize(
            self.model.head, fit_rows, val_rows, self.recipe, self.progress
        )
        self.model.set_head(head.to(device))
        if weights is not None and self.model.task.kind != "regression":
            weights.fold_temperature(report["temperature"])
        self.model.density = None if isinstance(head, GenerativeHead) else self.density(fit_rows)
        return ({"weights": settled} if settled else {}) | report

    def _settle(self) -> dict[str, Any]:
        """Let the method make its distribution over the adapter's weights."""
        model = self.model
        parts = Parts(model.backbone, model.head)
        rows = self.rows, self.val
        return model.method.settle(parts, self.reader, *rows, self.recipe, self.progress)

    def density(self, rows: Features) -> Density:
        """Return the class densities of features, in fp32; numbers are of one class."""
        labels = rows.labels
        if self.model.task.kind == "regression":
            labels = torch.zeros(len(rows), dtype=torch.int64)
        return fit_density(rows.phi, labels, self.model.task.outputs).stored()

    def _observe(self, rows: Rows) -> LogitDraws | LogitMoments | None:
        """Return what random adapter weights say of rows; None where the adapter is a point."""
        observed = self.model.observe_encoded(rows.encoded, progress=self.progress)
        return None if isinstance(observed, Tensor) else observed

    def features(self, rows: Rows, label: str = "") -> Tensor:
        """Return the features of rows ``(N, D)`` on the head's device."""
        device = next(self.model.head.parameters()).device
        shown = {"progress": self.progress, "label": label} if label else {}
        return features(self.reader, rows.encoded, self.processes, **shown).to(device)

    def new_loop(self, kappa: float) -> Loop:
        """Return a loop at its first step."""
        return Loop(
            method=self.model.method,
            reader=self.reader,
            head=self.model.head,
            rows=self.rows,
            config=self.recipe.train,
            kappa=kappa,
            seed=self.seed,
            epochs=self.epochs,
            processes=self.processes,
        )

    def _fill_cache(self) -> None:
        if self.reader.cache is None:
            return
        first = self.reader.tensors(self.rows.encoded, range(min(2, len(self.rows))))
        try:
            self.model.backbone.check_split(first)
        except ModelError as error:
            if self.recipe.cache.prefix == "on":
                raise
            logger.warning("training without the prefix cache: %s", error)
            self.reader.cache = self.model.cache = None
            return
        for name, rows in (("training", self.rows), ("held-out", self.val)):
            if rows is not None:
                label = f"frozen layers, {name}"
                fill(self.reader, rows.encoded, self.processes, progress=self.progress, label=label)

    def _race(self, kappas: tuple[float, ...], found: Mapping[str, Found]) -> Loop:
        """Train the candidates to half of their epochs and return the one to go on with.

        A single candidate needs no race. The model is left as the chosen one has it.
        """
        self.kappa = kappas[0]
        if len(kappas) == 1 or self.val is None:
            return self.new_loop(self.kappa)
        epochs = race_epochs(self.epochs)
        start = self._position()
        loops: dict[float, Loop] = {}
        reached: dict[float, Any] = {}
        losses: dict[float, Tensor] = {}
        with self.progress("choosing the KL weight", len(kappas) * epochs * len(self.rows)) as bar:
            for kappa in kappas:
                name, at = candidate(kappa), f"race/kl_{kappa:g}/"
                self._go_to(*start)
                if name in found:
                    loop = proceed(self, *found[name])
                    self._track(self.history, at)
                    self._validate(self.val)
                    bar(loop.done)
                else:
                    loop = self.new_loop(kappa)
                while loop.epoch < epochs and not self._out_of_patience(loop.epoch):
                    self.history.append(self._run_epoch(loop, bar, name))
                    self._track(self.history[-1:], at)
                    save_state(self, loop, name)
                loops[kappa], losses[kappa], reached[kappa] = loop, self.losses, self._position()
        self.kappa = largest(losses)
        self.kappas = {str(kappa): float(loss.mean()) for kappa, loss in losses.items()}
        self._go_to(*reached[self.kappa])
        self.journal.truncate(self.history)
        return loops[self.kappa]

    def _position(self) -> tuple[Any, ...]:
        """Return all that an epoch changes, but for the loop itself."""
        tensors = trainable(self.model.backbone, self.model.head)
        rng = rng_state(self.model.backbone.device)
        return tensors, rng, list(self.history), dict(self.best), self.best_tensors

    def _go_to(
        self,
        tensors: dict[str, Tensor],
        rng: dict[str, Tensor],
        history: list[dict[str, Any]],
        best: dict[str, Any],
        best_tensors: dict[str, Tensor],
    ) -> None:
        restore(self.model.backbone, self.model.head, tensors)
        set_rng_state(self.model.backbone.device, rng)
        self.history, self.best, self.best_tensors = list(history), dict(best), best_tensors

    def _run_epoch(self, loop: Loop, advance: Advance, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": loop.epoch + 1}
        if self.member:
            row["member"] = self.member
        row |= run_epoch(self, loop, advance, name)
        return row | self._evaluate_epoch(loop.epoch)

    def _train(self, loop: Loop) -> None:
        config, total = self.recipe.train, self.epochs * len(self.rows)
        if config.max_steps:
            total = min(total, config.max_steps * config.batch_size)
        with self.progress("training", total) as advance:
            advance(loop.done)
            while loop.epoch < self.epochs and not self._out_of_patience(loop.epoch):
                self.history.append(self._run_epoch(loop, advance, CHECKPOINT))
                self.journal.line(self.history[-1])
                self._track(self.history[-1:])
                save_state(self, loop, CHECKPOINT)

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.recipe.train.patience
        return patience > 0 and bool(self.best) and epoch - self.best["epoch"] >= patience

    def _evaluate_epoch(self, epoch: int) -> dict[str, Any]:
        report = adapter_report(self.model.backbone.peft_model)
        row: dict[str, Any] = {
            **summarise(report),
            "stable_ranks": {r.layer: round(r.stable_rank, 4) for r in report},
        }
        if self.val is None:
            return row
        row |= self._validate(self.val)
        if not self.best or row["val_nll"] < self.best["val_nll"]:
            self.best = {"epoch": epoch, "val_nll": row["val_nll"]}
            if self.recipe.train.keep == "best":
                self.best_tensors = trainable(self.model.backbone, self.model.head)
        return row

    def _validate(self, val: Rows) -> dict[str, float]:
        rows = val.features(self.features(val))
        predictive = self.model.method.predict(
            self.model.head, rows.phi, self.recipe.predict, rows.mask
        )
        if isinstance(predictive, RegressionPredictive):
            error = (predictive.mean - rows.labels.flatten()).square().mean().sqrt()
            row = {"val_rmse": float(error) * rows.unit}
        else:
            right = predictive.probs.argmax(1) == rows.labels
            row = {"val_accuracy": float(right.float().mean())}
        method, head, predict = self.model.method, self.model.head, self.recipe.predict
        tempered = self.recipe.finalize.temperature == "auto"
        losses = delivered_losses(method, head, rows, predict, tempered=tempered)
        self.losses = self.processes.same(losses)  # what is chosen by them is one for all
        return {"val_nll": float(self.losses.mean()), **row}
