"""What a Trainer leaves where numbers break down: the state before the step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import NumericsError
from bayestune.optim import StiefelAdam
from bayestune.training.checkpoint import rng_state, set_rng_state


class Before:
    """The state before a step, as far as a step that breaks off changes it.

    The adapter moves last, when all is known; the head and its moments move before it.

    Args:
        head: the last layer.
        optimizer: holds its moments.
        device: whose generators the step draws from.
    """

    def __init__(self, head: nn.Module, optimizer: StiefelAdam, device: torch.device) -> None:
        self.head, self.optimizer, self.device = head, optimizer, device
        self.values = {name: value.clone() for name, value in head.state_dict().items()}
        parameters = [p for p in head.parameters() if p in optimizer.state]
        self.moments = {p: copy.deepcopy(optimizer.state[p]) for p in parameters}
        self.random = rng_state(device)

    def restore(self) -> None:
        """Put it back."""
        self.head.load_state_dict(self.values)
        for p in self.head.parameters():
            self.optimizer.state.pop(p, None)
        for p, moments in self.moments.items():
            self.optimizer.state[p] = moments
        set_rng_state(self.device, self.random)


def require_finite(loss: Tensor, model: nn.Module) -> None:
    """Stop where a loss or gradient is not a number.

    Raises:
        NumericsError: naming the layer of weights nearest to the loss.
    """
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    broken = [n for n, g in gradients.items() if not torch.isfinite(g).all()]
    if not torch.isfinite(loss):
        raise NumericsError(f"The loss is {loss.item()}; lower the learning rates of for_trainer.")
    if broken:
        raise NumericsError(
            f"The gradient of {broken[-1]} is NaN or infinite; lower the learning rates of "
            "for_trainer, or load the model in float32 or bfloat16."
        )


def is_finite(model: Any) -> bool:
    """Return whether all that is trained is finite."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
