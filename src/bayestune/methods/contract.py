"""What a method is: four functions and its defaults. It owns no training loop and no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from bayestune.backbone import Backbone, Base, Source
from bayestune.config import PredictConfig, Recipe
from bayestune.data import Task
from bayestune.finalize import Features
from bayestune.posterior.predictive import Predictive
from bayestune.posterior.regression import RegressionPredictive
from bayestune.progress import Progress, silent


class Parts(NamedTuple):
    """What a method builds: the adapted backbone and the head on its features."""

    backbone: Backbone
    head: nn.Module


class Terms(NamedTuple):
    """The two terms of the objective; the trainer minimises ``nll + κ/N · kl``.

    ``nll`` is the mean bound on the negative log-likelihood of the batch in nats, ``kl`` the
    divergence of all random weights from their prior in nats (0 for point methods).
    """

    nll: Tensor
    kl: Tensor


class Build(Protocol):
    """Adapt a base and give it a head."""

    def __call__(
        self, base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe
    ) -> Parts: ...


class Loss(Protocol):
    """Return the terms of the objective on a batch of features ``(B, D)``."""

    def __call__(self, head: nn.Module, batch: Features) -> Terms: ...


class Finalize(Protocol):
    """Finish the posterior on cached features; return the head and what was chosen."""

    def __call__(
        self,
        head: nn.Module,
        fit: Features,
        held_out: Features | None,
        recipe: Recipe,
        progress: Progress = silent,
    ) -> tuple[nn.Module, dict[str, Any]]: ...


class Predict(Protocol):
    """Return the predictive of features ``(B, D)``; of numbers in units of the targets' scale."""

    def __call__(
        self, head: nn.Module, phi: Tensor, config: PredictConfig, mask: Tensor | None = None
    ) -> Predictive | RegressionPredictive: ...


@dataclass(frozen=True)
class Method:
    """One way to fine-tune: a composition of adapter, head, objective, finaliser and predictor.

    Attributes:
        name: what ``--method`` takes.
        summary: one line for ``bayestune methods``.
        source: the paper.
        defaults: recipe values where they differ from the recipe's own.
    """

    name: str
    summary: str
    source: str
    build: Build
    loss: Loss
    finalize: Finalize
    predict: Predict
    defaults: Mapping[str, Any] = field(default_factory=dict)
