"""The updates of the last layer, beside the step that a Trainer takes of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import NumericsError
from bayestune.finalize import Features
from bayestune.methods.contract import Terms
from bayestune.methods.parts import loss
from bayestune.optim import StiefelAdam, step_deviations
from bayestune.training.loop import DEVIATION_RATE, natural_deviations


class PosteriorStep:
    """Moves q(W) along the objective on features that are held still.

        mean −bound + κ/N · KL(q ‖ p)

    It uses the head's groups of the Trainer's optimiser, so that its moments are saved, resumed and
    scheduled with it, and leaves no gradient behind: what the Trainer clips and steps afterwards is
    the adapter alone.

    Args:
        head: the distribution.
        optimizer: holds its groups; every group has a ``peak`` rate.
        kappa: κ.
        rows: N.
        deviations: ``auto``, ``natural`` or ``adam``; see ``train.deviations``.
        reduce: returns the mean of a tensor over all processes.

    Raises:
        ConfigError: the head's deviations cannot take natural steps.
    """

    def __init__(
        self,
        head: nn.Module,
        optimizer: StiefelAdam,
        *,
        kappa: float,
        rows: int,
        deviations: str,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.head, self.optimizer, self.reduce = head, optimizer, reduce
        self.weight = kappa / rows
        self.natural = natural_deviations(head, kappa, deviations)

    def __call__(self, batches: Sequence[Features], share: float) -> None:
        """Take one step.

        Args:
            batches: the micro-batches of this process; gradients do not reach into them.
            share: their rows over the mean number of rows of a process, 1 for a single one.

        Raises:
            NumericsError: the objective is not finite.
        """
        batch = Features(
            torch.cat([b.phi.detach() for b in batches]), torch.cat([b.labels for b in batches])
        )
        parameters = [p for p in self.head.parameters() if p.requires_grad]
        terms = loss(self.head, batch)
        objective = share * terms.nll + self.weight * terms.kl
        if not torch.isfinite(objective):
            raise NumericsError(
                f"The objective of the last layer is {objective.item()}; lower the learning rates "
                "of for_trainer."
            )
        for p, grad in zip(parameters, torch.autograd.grad(objective, parameters), strict=True):
            p.grad = self.reduce(grad)
        if (own := self.natural) is not None:
            grad, own.grad = own.grad, None
            step_deviations(own, grad, DEVIATION_RATE * self._rate(), self.weight)  # pyright: ignore
        groups = self.optimizer.param_groups
        try:  # the adapter may have gradients that wait for the Trainer
            self.optimizer.param_groups = self._groups()
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        for p in parameters:
            p.grad = None

    def _groups(self) -> list[dict[str, Any]]:
        return [g for g in self.optimizer.param_groups if g["name"].startswith("head")]

    def _rate(self) -> float:
        """Return the share of the peak rate at which the schedule stands."""
        group = self._groups()[0]
        return group["lr"] / group["peak"] if group["peak"] else 0.0


def terms_for_adapter(head: nn.Module, batch: Features) -> Terms:
    """Return the two terms of the objective, in a graph that the head's parameters are not in."""
    parameters = [p for p in head.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        return loss(head, batch)
    finally:
        for p in parameters:
            p.requires_grad_(True)
