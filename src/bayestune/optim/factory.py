"""The optimiser for a whole model, also in the form that the Trainer of transformers takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bayestune.optim.groups import param_groups
from bayestune.optim.stiefel_adam import StiefelAdam


def build(
    model: nn.Module,
    lr: float = 1e-3,
    *,
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    head_weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    core: str = "spectral",
    update: str = "retract",
    penalty: float = 5e-3,
) -> StiefelAdam:
    """Build the optimiser of all trainable parameters of a model.

    Args:
        model: any module; see :func:`~bayestune.optim.param_groups` for what it may declare.
        lr: step size of the adapters.
        head_lr: step size of the heads; ``lr`` when omitted.
        weight_decay: decoupled weight decay of the Euclidean parameters outside the heads.
        head_weight_decay: decoupled weight decay of the heads.
        betas: decay rates of the moments.
        eps: term added to the denominator.
        core: step of the cores, see :func:`~bayestune.optim.param_groups`.
        update: update of the Stiefel group, see :class:`~bayestune.optim.StiefelAdam`.
        penalty: the landing field's λ.

    Returns:
        A :class:`~bayestune.optim.StiefelAdam` over the groups of the model.

    Raises:
        ConfigError: nothing is trainable, or an option or parameter cannot be used.
    """
    groups = param_groups(
        model,
        lr,
        head_lr=head_lr,
        weight_decay=weight_decay,
        head_weight_decay=head_weight_decay,
        core=core,
        update=update,
        penalty=penalty,
    )
    return StiefelAdam(groups, lr=lr, betas=betas, eps=eps)


def for_trainer(lr: float, **options: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return the value for ``optimizer_cls_and_kwargs`` of `Trainer` or `hf.BayesTrainer`.

    The Trainer calls a first element that is not an optimiser class without arguments and what
    this returns with the model. It does not pass its own ``learning_rate``, ``weight_decay`` or
    ``adam_*`` arguments on, so these are given here; its schedule applies to every group.

    Args:
        lr: step size of the adapters.
        **options: the other arguments of :func:`build`.

    Returns:
        A factory and the keyword arguments it is called with.
    """
    return _factory, {"lr": lr, **options}


def _factory() -> Callable[..., StiefelAdam]:
    return build
