"""A task made ready for training: token ids, labels, masks and class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayestune.data import LabelSet, Task
from bayestune.errors import ConfigError, DataError
from bayestune.finalize import Rows
from bayestune.head.precision import wide_device
from bayestune.model import BayesModel


def prepare(model: BayesModel, task: Task, class_weights: str = "none") -> Rows:
    """Encode a labelled task for a model.

    Raises:
        DataError: if a row has no label or the task is not the model's.
        ConfigError: if class weights name a class that is not there, or there are no classes.
    """
    labels = model.targets(task)
    encoded = model.encode(model.read(task))
    ids = tuple(example.id for example in task)
    if task.kind == "regression":
        if class_weights != "none":
            raise ConfigError(f"train.class_weights={class_weights}: numbers have no classes.")
        scaled = (labels - model.scaling.mean) / model.scaling.std
        return Rows(encoded, scaled.float()[:, None], None, None, model.scaling.std, ids)
    weights = sample_weights(class_weights, task.labels, labels)
    return Rows(encoded, labels, model.mask(task), weights, ids=ids)


def start(head: nn.Module, rows: Rows, phi: Tensor, indices: Sequence[int]) -> None:
    """Set a head's scales by the features ``(n, D)`` of some training rows, where float64 is."""
    device = next(head.parameters()).device
    first = rows.batch(phi.to(wide_device(device)), indices)
    head.to(first.phi.device).start(first.phi, first.labels, first.weights)  # pyright: ignore
    head.to(device)


def sample_weights(spec: str, names: LabelSet, labels: Tensor) -> Tensor | None:
    """Return a weight per row, of mean one over the rows; see `weights_of_classes`."""
    per_class = weights_of_classes(spec, names, labels)
    return None if per_class is None else per_class[labels].float()


def weights_of_classes(spec: str, names: LabelSet, labels: Tensor) -> Tensor | None:
    """Return what a row of each class weighs ``(K,)`` in float64, of mean one over the rows.

    Args:
        spec: ``none``, ``balanced`` (N / (K · count)) or ``name=weight,name=weight`` (others 1).
        names: the classes.
        labels: class indices ``(N,)``.

    Raises:
        ConfigError: if the specification names no class or a weight that is not positive.
    """
    if spec == "none":
        return None
    counts = torch.bincount(labels, minlength=len(names)).double()
    if spec == "balanced":
        per_class = labels.numel() / (len(names) * counts.clamp_min(1))
    else:
        per_class = torch.ones(len(names), dtype=torch.float64)
        for pair in spec.split(","):
            name, equals, value = pair.rpartition("=")
            try:
                per_class[names.index(name.strip())] = weight = float(value)
            except (ValueError, DataError) as error:
                raise ConfigError(f"train.class_weights: {pair.strip()!r}: {error}") from error
            if not equals or not 0 < weight < math.inf:
                raise ConfigError(f"train.class_weights: {pair.strip()!r} is not name=weight.")
    return per_class / per_class[labels].mean()
