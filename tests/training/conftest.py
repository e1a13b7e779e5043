"""A loop on a few rows, ready to take steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bayestune.config import TrainConfig
from bayestune.data import Task
from bayestune.model import BayesModel
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
