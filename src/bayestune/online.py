"""Online learning: new labelled rows for the last layer of a trained model, nothing forgotten."""

from __future__ import annotations

import copy
import logging
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor

from bayestune.calibration import seen
from bayestune.data import Task
from bayestune.errors import ConfigError, DataError
from bayestune.finalize import Delivered, Features, update_head
from bayestune.head import GaussianHead, GenerativeHead, OrdinalHead
from bayestune.head.precision import wide_device
from bayestune.methods import METHODS
from bayestune.metrics import extend_density
from bayestune.model import BayesModel
from bayestune.progress import Progress, silent
from bayestune.training.choose import delivered_losses
from bayestune.training.rows import prepare
from bayestune.version import __version__

logger = logging.getLogger(__name__)

#: Rows whose features are held at once; the posterior of one block is the prior of the next.
BLOCK = 4096


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        rows: how many rows there were.
        nll_before: their mean negative log-likelihood before the model learnt from them, in nats.
        nll_after: the same afterwards.
        density: whether the feature density (``ood_score``) has taken them in, too.
        guarantees_dropped: whether the model promised sets or abstention, which no longer hold.
    """

    rows: int
    nll_before: float
    nll_after: float
    density: bool
    guarantees_dropped: bool


def update(
    model: BayesModel,
    task: Task,
    *,
    again: bool = False,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Update:
    """Update the posterior of the last layer by new labelled rows.

        q_new = argmax over q  Σ_n E log p(y_n | W) − κ KL(q ‖ q_old)

    Exact for numbers and Gaussian classes, recursive Laplace or variational elsewhere; see
    `finalize.update`. Each row passes through the backbone once, nothing but the last layer moves,
    and what earlier rows said stays as q_old. What the training chose stays, temperature included;
    guarantees are dropped, as they were of the model as it was.

    Args:
        model: trained, with a distribution over its last layer and a fixed adapter; changed in
            place, or not at all where an error is raised.
        task: labelled rows of the model's classes.
        again: count rows that the model has learnt from already once more.
        batch_size: texts in a pass.
        progress: how to report.

    Returns:
        How many rows there were and what they did.

    Raises:
        ConfigError: if the model has no such posterior.
        DataError: if a row has no label or another class, there are none, or the model has learnt
            from these rows already.
    """
    delivered = _delivered(model)
    if not len(task):
        raise DataError(f"{task.title} has no rows to learn from.")
    if not again and seen(model, task):
        raise DataError(
            f"{task.title} holds rows that the model has learnt from already: they would count "
            "twice. Where they are to, say again=True (--again)."
        )
    rows = prepare(model, model.read(task))
    per_class = _class_weights(model)
    device = model.backbone.device
    head, density, reader = copy.deepcopy(model.head), model.density, model.reader()
    head = head.to(wide_device(device))
    at = next(head.parameters()).device
    before = after = 0.0
    with progress("new rows", len(rows)) as advance:
        for start in range(0, len(rows), BLOCK):
            some = list(range(start, min(start + BLOCK, len(rows))))
            phi = reader.features(rows.encoded.select(some), batch_size)
            block = rows.batch(phi.to(at), some)
            if per_class is not None:
                block = _weighed(block, per_class)
            before += _loss(model, head, block)
            update_head(head, block, delivered)
            after += _loss(model, head, block)
            if density is not None and density.counts is not None:
                density = extend_density(density, phi, _classes(model, block).cpu()).stored()
            advance(len(some))
    grown = isinstance(head, GenerativeHead) or density is not model.density
    found = Update(
        len(rows), before / len(rows), after / len(rows), grown, model.guarantees is not None
    )
    model.set_head(head.to(device))
    model.density, model.guarantees = density, None
    model.notes = {**model.notes, "updates": [*model.notes.get("updates", ()), _note(task, found)]}
    return found


def _delivered(model: BayesModel) -> Delivered:
    """Return how the model's posterior came about, where it is one that can be updated."""
    name, weights = model.method.name, model.backbone.weights
    if weights is not None and weights.is_random:
        raise ConfigError(
            f"{name} is random in the weights of its adapter, which an update leaves alone: new "
            "rows would count for the last layer only. polar_vbll, lora_vbll and "
            "last_layer_laplace can be updated."
        )
    head = model.head
    if not isinstance(head, GaussianHead | OrdinalHead | GenerativeHead) or head.point:
        way = "polar_vbll, lora_vbll and last_layer_laplace have one."
        if name in METHODS["last_layer_laplace"].after:
            way = (
                "bayestune train --method last_layer_laplace --from RUN --data TRAIN --val VAL "
                "--out NEW gives it one."
            )
        raise ConfigError(
            f"{name} has a point for its last layer and no posterior to update. {way}"
        )
    chosen = model.notes.get("chosen")
    if chosen is None:
        raise ConfigError("The model is not trained; an update starts from a trained one (fit).")
    if isinstance(head, GenerativeHead) and chosen.get("covariance") != "exact":
        raise ConfigError(
            "The generative head was trained by a bound and kept (finalize.refresh=none): it does "
            "not say counts and sums. Train with finalize.refresh=auto, the exact posterior."
        )
    rows = head.row if isinstance(head, OrdinalHead) else head
    if rows.family == "diagonal" and model.task.kind != "regression":
        logger.warning(
            "the covariance is diagonal: it remembers each weight by itself and not the features "
            "that go together, so that new rows may move predictions of old ones by more than a "
            "refit would; finalize.refresh=block (or full, kronecker, eigen) remembers them"
        )
    return Delivered.of(chosen)


def _class_weights(model: BayesModel) -> Tensor | None:
    """Return what a row of each class counted in the training ``(K,)``; None where all one."""
    spec = model.recipe.train.class_weights
    if spec == "none":
        return None
    known = model.notes.get("data", {}).get("class_weights")
    if known is None:
        raise ConfigError(
            f"The model was trained with train.class_weights={spec} by an earlier version, which "
            "did not keep what a row of each class counted. Train it again."
        )
    return torch.tensor(known)


def _weighed(block: Features, per_class: Tensor) -> Features:
    weights = per_class.to(block.phi)[block.labels]
    return Features(block.phi, block.labels, block.mask, weights, block.unit)


def _classes(model: BayesModel, block: Features) -> Tensor:
    """Return the classes of the density; numbers are of one."""
    if model.task.kind == "regression":
        return torch.zeros(len(block), dtype=torch.int64)
    return block.labels


def _loss(model: BayesModel, head: torch.nn.Module, block: Features) -> float:
    losses = delivered_losses(model.method, head, block, model.recipe.predict, tempered=False)
    return float(losses.sum())


def _note(task: Task, found: Update) -> dict[str, object]:
    return {
        "rows": found.rows,
        "hash": task.hash,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "nll_before": found.nll_before,
        "nll_after": found.nll_after,
        "density": found.density,
        "bayestune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
