"""Training an ensemble: the same run again and again, from other starts and in other orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from bayestune.training.checkpoint import restore, trainable
from bayestune.training.run import CHECKPOINT
from bayestune.weights import MemberWeights

if TYPE_CHECKING:
    from bayestune.training.session import Session

#: Names of what the members leave behind; a new start does not touch it.
_KEPT = "backbone.weights."


def optimise_members(session: Session, weights: MemberWeights, found: Mapping[str, Any]) -> None:
    """Train all members in turn, each to its last epoch, and keep the epoch that the recipe says.

    Args:
        session: the fit in progress.
        weights: where members are kept.
        found: the state to continue from, of the member that was being trained.
    """
    model = session.model
    start = trainable(model.backbone, model.head)
    start = {name: t for name, t in start.items() if not name.startswith(_KEPT)}
    if CHECKPOINT in found:
        session.member = found[CHECKPOINT][1]["member"]
    while True:
        if session.member > 0 and CHECKPOINT not in found:
            restore(model.backbone, model.head, start)
            torch.manual_seed(session.seed)
            weights.start()
        session.optimise_one(found)
        found = {}
        if session.best_tensors:
            restore(model.backbone, model.head, session.best_tensors)
        weights.keep(session.member)
        if session.member + 1 == weights.members:
            break
        session.member += 1
        session.best, session.best_tensors = {}, {}
    # Each member has its own best epoch by now.
    session.best, session.best_tensors = {}, {}
