"""Fine-tuning from a model and a task to a run: cache, choose, train, finalise, save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayestune.config import Recipe, from_mapping, merge, nest, to_mapping
from bayestune.data import Task
from bayestune.errors import ConfigError, DataError, StoreError
from bayestune.finalize import Features
from bayestune.metrics import Density, fit_density
from bayestune.model import BayesModel
from bayestune.peft import adapter_report
from bayestune.progress import Progress, shown
from bayestune.training.checkpoint import (
    flatten,
    load_checkpoint,
    restore,
    save_checkpoint,
    trainable,
    unflatten,
)
from bayestune.training.choose import choose_kappa, delivered_nll
from bayestune.training.loop import Loop
from bayestune.training.rows import Rows, prepare
from bayestune.training.run import Journal, Run

#: What a fit may still change of a recipe that a model was built with.
_OPEN = ("seed", "train", "finalize", "cache", "predict")


def fit(
    model: BayesModel,
    train: Task,
    *,
    val: Task | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = shown,
    **overrides: Any,
) -> Run:
    """Fine-tune a model: adapter and posterior by one ELBO, then the finaliser.

    Without ``val`` a stratified slice of ``train`` (``train.hold_out``) takes its place. Held-out
    rows choose the epoch that is kept, the KL weight, the refresh precision and the temperature,
    each where the recipe says ``auto``.

    Args:
        model: changed in place.
        train: labelled examples.
        val: labelled examples to choose by.
        out: the run's folder; ``out/model`` is what ``model.save`` writes.
        resume: continue an interrupted run in ``out``.
        overwrite: replace a run that lies in ``out``.
        progress: how to report.
        **overrides: ``seed=0`` and recipe keys of training and finalising, by short or dotted
            names (``epochs=3``, ``lr=1e-3``).

    Returns:
        The record of the run.

    Raises:
        ConfigError: for an unknown key, or one that is fixed when a model is built.
        DataError: if the tasks are not the model's or have fewer than two classes.
        StoreError: if the run cannot be written, or one lies there already.
        NumericsError: if the loss stops being a number; the last checkpoint stays loadable.
    """
    started = time.monotonic()
    recipe = model.recipe = _with_overrides(model.recipe, overrides)
    folder = None if out is None else Path(out)
    if resume and folder is None:
        raise ConfigError("resume needs the folder of the run to continue: give out.")
    if sum(count > 0 for count in train.class_counts) < 2:
        raise DataError(
            f"{train.source}: all training rows are of one class; a classifier needs two or more."
        )
    if val is None and recipe.train.hold_out > 0 and _needs_held_out(recipe):
        train, val = train.split(recipe.train.hold_out, recipe.seed)
    session = Session(model, train, val, Journal(folder), progress)
    return session.run(resume=resume, overwrite=overwrite, started=started)


class Session:
    """One fit in progress.

    Args:
        model: the model being trained.
        train: training examples.
        val: held-out examples, or None.
        journal: writes the run's folder.
        progress: how to report.
    """

    def __init__(
        self,
        model: BayesModel,
        train: Task,
        val: Task | None,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.model = model
        self.recipe = model.recipe
        self.journal = journal
        self.progress = progress
        self.rows = prepare(model, train, self.recipe.train.class_weights)
        self.val = prepare(model, val) if val is not None else None
        self.facts = {"train_hash": train.hash, "val_hash": val.hash if val else None}
        self.own_cache = model.cache is None
        if self.own_cache:
            model.cache = model.new_cache()
        self.reader = model.reader()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_tensors: dict[str, Tensor] = {}

    def run(self, *, resume: bool, overwrite: bool, started: float) -> Run:
        """Do all steps in order; see `fit`."""
        checkpoint = self.journal.out / "checkpoint" if self.journal.out is not None else None
        fresh = not (resume and checkpoint is not None and checkpoint.is_dir())
        if resume and fresh and checkpoint is not None and (checkpoint.parent / "model").is_dir():
            raise StoreError(
                f"{checkpoint.parent} holds a finished run; there is nothing to resume."
            )
        self.journal.open(self.recipe, self.facts, fresh=fresh and not overwrite)
        self._fill_cache()
        if fresh:
            torch.manual_seed(self.recipe.seed)
            self._measure_energy()
            kappa = choose_kappa(self._new_loop, self._validate_nll, self.model, self.progress)
        else:
            kappa = 0.0
        loop = self._new_loop(kappa, self.recipe.train.epochs)
        if not fresh and checkpoint is not None:
            self._resume(loop, checkpoint)
        self._train(loop, checkpoint)
        if self.best_tensors and self.recipe.train.keep == "best":
            restore(self.model.backbone, self.model.head, self.best_tensors)
        chosen = {"kl": loop.kappa, **{f"best_{k}": v for k, v in self.best.items()}}
        chosen |= self._finalize()
        self.model.notes = {"chosen": chosen, "data": self.facts}
        if self.journal.out is not None:
            self.model.save(self.journal.out / "model")
        if self.own_cache:
            self.model.cache = None
        seconds = time.monotonic() - started
        return Run(self.journal.out, self.recipe, self.history, chosen, seconds)

    def _new_loop(self, kappa: float, epochs: int) -> Loop:
        return Loop(
            method=self.model.method,
            reader=self.reader,
            head=self.model.head,
            rows=self.rows,
            config=self.recipe.train,
            kappa=kappa,
            seed=self.recipe.seed,
            epochs=epochs,
        )

    def _fill_cache(self) -> None:
        if self.reader.cache is None:
            return
        first = self.reader.tensors(self.rows.encoded, range(min(2, len(self.rows))))
        self.model.backbone.check_split(first)
        for name, rows in (("training", self.rows), ("held-out", self.val)):
            if rows is not None:
                label = f"frozen layers, {name}"
                self.reader.fill(rows.encoded, progress=self.progress, label=label)

    def _measure_energy(self) -> None:
        """Measure E‖φ‖² of the features as training starts, on at most 512 rows."""
        step = max(1, len(self.rows) // 512)
        some = range(0, len(self.rows), step)
        encoded = replace(
            self.rows.encoded,
            ids=[self.rows.encoded.ids[i] for i in some],
            token_type_ids=None
            if self.rows.encoded.token_type_ids is None
            else [self.rows.encoded.token_type_ids[i] for i in some],
        )
        self.model.head.set_feature_energy(self.reader.features(encoded))  # pyright: ignore

    def _train(self, loop: Loop, checkpoint: Path | None) -> None:
        config = self.recipe.train
        total = config.epochs * len(self.rows)
        with self.progress("training", total) as advance:
            advance(min(loop.step * config.batch_size, total))
            while loop.epoch < config.epochs and not self._out_of_patience(loop.epoch):
                row = {"epoch": loop.epoch + 1, **loop.run_epoch(advance)}
                row |= self._evaluate_epoch(loop.epoch)
                self.history.append(row)
                self.journal.line(row)
                if checkpoint is not None:
                    self._save_checkpoint(loop, checkpoint)

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.recipe.train.patience
        return patience > 0 and bool(self.best) and epoch - self.best["epoch"] >= patience

    def _evaluate_epoch(self, epoch: int) -> dict[str, Any]:
        report = adapter_report(self.model.backbone.peft_model)
        row: dict[str, Any] = {
            "stable_rank": sum(r.stable_rank for r in report) / max(1, len(report)),
            "orthogonality_error": max(
                (max(r.orthogonality_X, r.orthogonality_Y) for r in report), default=0.0
            ),
        }
        if self.val is None:
            return row
        row |= self._validate()
        if not self.best or row["val_nll"] < self.best["val_nll"]:
            self.best = {"epoch": epoch, "val_nll": row["val_nll"]}
            self.best_tensors = trainable(self.model.backbone, self.model.head)
        return row

    def _validate(self) -> dict[str, float]:
        assert self.val is not None
        rows = self.val.features(self._features(self.val))
        probs = self.model.method.predict(
            self.model.head, rows.phi, self.recipe.predict, rows.mask
        ).probs
        accuracy = float((probs.argmax(1) == rows.labels).double().mean())
        return {"val_nll": self._validate_nll(rows), "val_accuracy": accuracy}

    def _validate_nll(self, rows: Features | None = None) -> float:
        if rows is None:
            assert self.val is not None
            rows = self.val.features(self._features(self.val))
        tempered = self.recipe.finalize.temperature == "auto"
        return delivered_nll(
            self.model.method, self.model.head, rows, self.recipe.predict, tempered=tempered
        )

    def _features(self, rows: Rows, label: str = "") -> Tensor:
        """Return features on the head's device."""
        device = next(self.model.head.parameters()).device
        quiet = {"progress": self.progress, "label": label} if label else {}
        return self.reader.features(rows.encoded, **quiet).to(device)

    def _finalize(self) -> dict[str, Any]:
        fit_rows = self.rows.features(self._features(self.rows, "features, training"))
        val_rows = None if self.val is None else self.val.features(self._features(self.val))
        head, report = self.model.method.finalize(
            self.model.head, fit_rows, val_rows, self.recipe.finalize
        )
        self.model.set_head(head)
        density = fit_density(fit_rows.phi, fit_rows.labels, len(self.model.labels))
        self.model.density = Density(
            density.means.float(), density.whitening.float(), density.present
        )
        return report

    def _save_checkpoint(self, loop: Loop, folder: Path) -> None:
        tensors = {
            f"now.{k}": v for k, v in trainable(self.model.backbone, self.model.head).items()
        }
        tensors |= {f"best.{k}": v for k, v in self.best_tensors.items()}
        tensors["rng"] = torch.get_rng_state()
        state: dict[str, Any] = {
            **loop.state(),
            "best": self.best,
            "history": self.history,
            "recipe": to_mapping(self.recipe),
            "facts": self.facts,
        }
        for name in ("adapter", "posterior"):
            parts, state[name] = flatten(name, getattr(loop, name).state_dict())
            tensors |= parts
        save_checkpoint(folder, tensors, state)

    def _resume(self, loop: Loop, folder: Path) -> None:
        tensors, state = load_checkpoint(folder)
        if state["recipe"] != to_mapping(self.recipe) or state["facts"] != self.facts:
            what = "recipe" if state["facts"] == self.facts else "data"
            raise StoreError(
                f"{folder} belongs to a run with another {what}; resume with the same command, or "
                "start anew with --overwrite."
            )
        restore(self.model.backbone, self.model.head, _under("now.", tensors))
        self.best, self.best_tensors = state["best"], _under("best.", tensors)
        self.history = state["history"]
        self.journal.truncate(self.history)
        for name in ("adapter", "posterior"):
            getattr(loop, name).load_state_dict(unflatten(name, tensors, state[name]))
        loop.step, loop.epoch, loop.kappa = state["step"], state["epoch"], state["kappa"]
        torch.set_rng_state(tensors["rng"])


def _needs_held_out(recipe: Recipe) -> bool:
    finalize = recipe.finalize
    return "auto" in (recipe.train.kl, finalize.temperature, finalize.precision) or (
        recipe.train.patience > 0
    )


def _with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    sections = {k: v for k, v in overrides.items() if isinstance(v, Mapping)}
    changes = merge(sections, nest({k: v for k, v in overrides.items() if k not in sections}))
    closed = [key for key in changes if key not in _OPEN]
    if closed:
        raise ConfigError(
            f"{closed[0]} is fixed when a model is built: give it to build. fit takes "
            f"{', '.join(_OPEN)}."
        )
    return from_mapping(merge(to_mapping(recipe), changes))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


__all__ = ["Run", "Session", "fit"]
