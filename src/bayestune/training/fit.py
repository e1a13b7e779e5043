"""Fine-tuning from a model and a task to a run: cache, choose, train, finalise, save."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bayestune import methods
from bayestune.config import Recipe, from_mapping, merge, nest_sections, to_mapping
from bayestune.data import Task
from bayestune.errors import ConfigError, DataError
from bayestune.finalize import (
    REFRESHES,
    held_out_missing,
    open_choices,
    require_possible,
    require_predictive,
)
from bayestune.head import GenerativeHead
from bayestune.model import BayesModel
from bayestune.processes import current
from bayestune.progress import Progress, shown
from bayestune.store import start_from
from bayestune.training.choose import steps_of
from bayestune.training.loop import natural_deviations
from bayestune.training.penalty import require_point
from bayestune.training.run import Journal, Run
from bayestune.training.session import Session
from bayestune.training.together import require_together
from bayestune.training.trackers import Trackers, wanted

#: What a fit may still change of a recipe that a model was built with.
_OPEN = ("seed", "train", "finalize", "cache", "predict")


def fit(
    model: BayesModel,
    train: Task,
    *,
    val: Task | None = None,
    out: str | Path | None = None,
    start: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    track: str | Iterable[str] = (),
    progress: Progress = shown,
    **overrides: Any,
) -> Run:
    """Fine-tune a model: adapter and posterior by one ELBO, then the finaliser.

    Without ``val`` a stratified slice of ``train`` (``train.hold_out``) takes its place. Held-out
    rows choose the epoch that is kept, the KL weight, the refresh precision and the temperature,
    each where the recipe says ``auto``.

    Where processes have joined (``torch.distributed``), they train together: every batch and every
    set of rows is dealt among them, the first one writes, and all of them end with the same model.

    Args:
        model: changed in place.
        train: labelled examples.
        val: labelled examples to choose by.
        out: the run's folder; ``out/model`` is what ``model.save`` writes.
        start: the run or model to start from instead of training, where the method follows the
            training of another (`Method.after`): the adapter and the mean are taken as they are.
        resume: continue an interrupted run in ``out``.
        overwrite: replace a run that lies in ``out``.
        track: also log to these: ``tensorboard``, ``trackio``, ``wandb`` or ``mlflow``.
        progress: how to report.
        **overrides: ``seed=0`` and recipe keys of training and finalising, by short or dotted
            names (``epochs=3``, ``lr=1e-3``).

    Returns:
        The record of the run.

    Raises:
        ConfigError: for an unknown key, or one that is fixed when a model is built; for a tracker
            that is unknown, not installed or cannot be started.
        DataError: if the tasks are not the model's or have fewer than two classes or numbers.
        StoreError: if the run cannot be written, or one lies there already.
        NumericsError: if the loss stops being a number; the last checkpoint stays loadable.
    """
    started = time.monotonic()
    model.recipe = _with_overrides(model.recipe, overrides)
    folder = None if out is None else Path(out)
    processes = current()
    require_together(model, processes)
    trackers = Trackers(wanted(track) if processes.first else (), folder)
    if resume and folder is None:
        raise ConfigError("resume needs the folder of the run to continue: give out.")
    if start is not None:
        _require_fresh_rows(model, val, resume)
    train, val = split(model, train, val)
    model.adopt(train)
    model.guarantees = None  # they were of the model as it was
    begun = None if start is None else start_from(model, start)
    journal = Journal(folder, mute=not processes.first)
    session = Session(model, train, val, journal, progress, trackers, processes)
    return session.run(resume=resume, overwrite=overwrite, started=started, begun=begun)


def split(model: BayesModel, train: Task, val: Task | None) -> tuple[Task, Task | None]:
    """Return the examples to train on and those to choose by, None where nothing is chosen.

    Raises:
        ConfigError: if the recipe asks for what cannot be trained, chosen or delivered.
        DataError: if the training examples are of one class, or too few to hold one out.
    """
    recipe = model.recipe
    if isinstance(model.head, GenerativeHead) and not recipe.head.joint:
        raise ConfigError(
            "this model was fitted already: a generative head has taken the place of the one that "
            "is trained. Build it anew."
        )
    kl = recipe.train.kl
    natural_deviations(model.head, 1.0 if isinstance(kl, str) else kl, recipe.train.deviations)
    require_point(recipe.train, model.head)
    if train.kind != "regression" and sum(count > 0 for count in train.class_counts) < 2:
        raise DataError(
            f"{train.title}: all training rows are of one class; a classifier needs two or more."
        )
    if val is None and (choices := _open_choices(model)):
        if recipe.train.hold_out == 0:
            raise held_out_missing(choices)
        train, val = train.split(recipe.train.hold_out, recipe.seed)
    require_possible(recipe, model.head, len(train), model.backbone.weights)
    require_predictive(recipe, model.head, model.backbone.weights, len(model.labels))
    if model.backbone.weights is not None:
        model.backbone.weights.require_steps(steps_of(recipe.train, len(train)))
    return train, val


def _require_fresh_rows(model: BayesModel, val: Task | None, resume: bool) -> None:
    """Raise where rows that a trained model has learnt by heart would choose for it."""
    if resume:
        raise ConfigError("a run that starts from a trained model has no training to resume.")
    if val is None and (choices := _open_choices(model)):
        raise ConfigError(
            f"{', '.join(choices)} is chosen by held-out rows; a model that is trained already may "
            "have seen any of these: give rows that it has not seen as val (--val)."
        )


def _open_choices(model: BayesModel) -> list[str]:
    """Return what a model's recipe leaves to held-out rows, in words for people."""
    recipe, config, point = model.recipe, model.recipe.finalize, model.head.point
    found = ["train.patience"] if recipe.train.patience > 0 else []
    found += [f"weights.{key}=held_out" for key, v in recipe.weights.items() if v == "held_out"]
    if (not point or model.backbone.has_kl) and recipe.train.kl == "auto":
        found.append("train.kl=auto")
    if recipe.head.kind != "generative" and (not point or config.refresh in REFRESHES):
        return found + open_choices(config, recipe.train.kl)
    return found + (["finalize.temperature=auto"] if config.temperature == "auto" else [])


def _with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    changes = nest_sections(overrides)
    closed = [key for key in changes if key not in _OPEN]
    if closed:
        raise ConfigError(
            f"{closed[0]} is fixed when a model is built: give it to build. fit takes "
            f"{', '.join(_OPEN)}."
        )
    return methods.checked(from_mapping(merge(to_mapping(recipe), changes)))
