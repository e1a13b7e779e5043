"""What a method is: four functions and its defaults. It owns no training loop and no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from bayestune.backbone import Backbone, Base, Reader, Source
from bayestune.config import PredictConfig, Recipe
from bayestune.data import Task
from bayestune.finalize import Features, Rows
from bayestune.posterior.observed import Observed
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


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


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


class Settle(Protocol):
    """Make of what was trained a distribution over the adapter's weights; return what was chosen.

    Called once after training, before any feature is read for the finaliser. The weights that it
    leaves in the adapter are the posterior's mean.
    """

    def __call__(
        self,
        parts: Parts,
        reader: Reader,
        fit: Rows,
        held_out: Rows | None,
        recipe: Recipe,
        progress: Progress = silent,
    ) -> dict[str, Any]: ...


class Predict(Protocol):
    """Return the predictive of what was observed; of numbers in units of the targets' scale.

    That is features ``(B, D)``, or what random adapter weights say of the logits.
    """

    def __call__(
        self, head: nn.Module, phi: Observed, config: PredictConfig, mask: Tensor | None = None
    ) -> Predictive | RegressionPredictive: ...


class Check(Protocol):
    """Raise ConfigError where a recipe asks for what a method does not do."""

    def __call__(self, recipe: Recipe) -> None: ...


def anything(recipe: Recipe) -> None:
    """Accept every recipe."""


@dataclass(frozen=True)
class Method:
    """One way to fine-tune: a composition of adapter, head, objective, finaliser and predictor.

    Attributes:
        name: what ``--method`` takes.
        summary: one line for ``bayestune methods``.
        source: the paper.
        settle: makes of the adapter's weights what they are to be, once after training.
        check: refuses recipes, before anything is loaded.
        defaults: recipe values where they differ from the recipe's own.
        after: methods whose training is its own, so that it can start from a model of theirs.
        options: a frozen dataclass of the keys in its section ``weights``; one that is ``held_out``
            is left to held-out rows, and these are seen to.
    """

    name: str
    summary: str
    source: str
    build: Build
    loss: Loss
    settle: Settle
    finalize: Finalize
    predict: Predict
    check: Check = anything
    defaults: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    options: type = NoOptions
