"""A loop on a few rows, ready to take steps, and models trained on numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from number_tasks import number_task

from bayestune.config import TrainConfig
from bayestune.data import Task
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import Run, fit
from bayestune.training.loop import Loop
from bayestune.training.rows import prepare


@pytest.fixture
def make_loop() -> Callable[..., Loop]:
    """Prepare a model (head scaled to its features) for steps on a task."""

    def maker(
        model: BayesModel, task: Task, *, kappa: float = 1.0, epochs: int = 2, **changes: Any
    ) -> Loop:
        config: TrainConfig = replace(model.recipe.train, **changes)
        rows = prepare(model, task, config.class_weights)
        model.head.set_feature_energy(model.features(task))
        torch.manual_seed(0)
        return Loop(
            method=model.method,
            reader=model.reader(),
            head=model.head,
            rows=rows,
            config=config,
            kappa=kappa,
            seed=0,
            epochs=epochs,
        )

    return maker


@pytest.fixture(scope="session")
def numbers() -> Task:
    """240 texts with a number each, whose noise has a deviation of 10."""
    return number_task(240)


@pytest.fixture(scope="session")
def numbers_test() -> Task:
    """300 more of them."""
    return number_task(300, 9)


@pytest.fixture(scope="session")
def fitted_numbers(make, numbers, tmp_path_factory) -> Callable[..., tuple[BayesModel, Run, Path]]:
    """Return a model trained on numbers, its run and folder, made once per set of options."""
    made: dict[str, tuple[BayesModel, Run, Path]] = {}

    def get(
        method: str = "polar_vbll", task: Task | None = None, **options: Any
    ) -> tuple[BayesModel, Run, Path]:
        rows = numbers if task is None else task
        key = f"{method} {rows.hash} {sorted(options.items())}"
        if key not in made:
            options = {"kl": 0.0 if method == "mle" else 1.0, "epochs": 8, **options}
            model = make(method, labels=rows, **options)
            out = tmp_path_factory.mktemp("numbers") / "run"
            run = fit(model, rows, val=number_task(80, 5), out=out, progress=silent)
            made[key] = model, run, out
        return made[key]

    return get
