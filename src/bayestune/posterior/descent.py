"""Minimising a smooth function of some tensors by L-BFGS, without a trace on autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 500


def descend(
    goal: Callable[..., Tensor], *start: Tensor, tolerance: float, steps: int = _STEPS
) -> tuple[Tensor, ...]:
    """Return where a smooth function has a minimum near a start.

    Args:
        goal: the function, of as many tensors as ``start`` has; differentiable.
        *start: where to begin.
        tolerance: largest entry of the gradient at which to stop.
        steps: the most steps.
    """
    moved = [t.detach().clone().requires_grad_() for t in start]
    optimiser = torch.optim.LBFGS(
        moved,
        max_iter=steps,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = goal(*moved)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return tuple(t.detach() for t in moved)
