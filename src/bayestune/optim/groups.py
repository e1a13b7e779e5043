"""Sorting the parameters of a model into the groups that the optimiser treats differently."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

from bayestune.errors import ConfigError, nearest
from bayestune.optim.checks import CORE_STEPS, MANIFOLDS

#: Name of the groups of parameters with step sizes of their own.
DEVIATIONS = "deviations"


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    head_weight_decay: float = 0.0,
    core: str = "spectral",
    update: str = "retract",
    penalty: float = 5e-3,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into ``stiefel``, ``core``, ``euclidean`` and ``head`` groups.

    A module says what it holds by class attributes. ``manifolds``, a mapping such as
    ``{"polar_X": "stiefel", "polar_theta": "core"}``, names attributes (a parameter, or a container
    of parameters) that live on a manifold or between two of its factors. ``is_bayes_head = True``
    sends all parameters of a module to the head's groups; its method ``lr_factors()``, if there is
    one, returns factors on ``head_lr`` by parameter name, and parameters of equal factor share a
    group. A method ``own_rates()`` returns step sizes by parameter name, for the deviations of
    random weights, whose steps have nothing to do with those of the weights.

    Args:
        model: any module, wrapped or not.
        lr: step size of the groups outside the heads.
        head_lr: step size of the heads; ``lr`` when omitted.
        weight_decay: decoupled weight decay of the Euclidean group and of the cores.
        head_weight_decay: decoupled weight decay of the heads.
        core: step of the cores: ``"spectral"``, see :class:`~bayestune.optim.StiefelAdam`, or
            ``"adam"`` as PoLAR's authors have it, which counts them among the Euclidean ones.
        update: update of the Stiefel group, see :class:`~bayestune.optim.StiefelAdam`.
        penalty: the landing field's λ for the Stiefel group.

    Returns:
        Groups with a ``name`` each (``"stiefel"``, ``"core"``, ``"euclidean"``, ``"deviations"``
        for each step size of their own, ``"head"``, and
        ``"head*<factor>"`` where a factor is not 1), no parameter twice, none empty.

    Raises:
        ConfigError: nothing is trainable, ``core`` is unknown, or a module declares what it does
            not have.
    """
    head_lr = lr if head_lr is None else head_lr
    if core not in CORE_STEPS:
        raise ConfigError(f"core={core!r} is unknown.{nearest(core, CORE_STEPS)}")
    head: dict[float, list[nn.Parameter]] = defaultdict(list)
    kinds: dict[str, list[nn.Parameter]] = {manifold: [] for manifold in MANIFOLDS}
    seen: set[int] = set()

    def claim(parameter: nn.Parameter, group: list[nn.Parameter]) -> None:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            group.append(parameter)

    # Heads first: a head owns its parameters whatever else they are reached by.
    for module in model.modules():
        # A frozen head (PEFT keeps the original beside the trained copy) was never measured.
        if getattr(type(module), "is_bayes_head", False) and any(
            p.requires_grad for p in module.parameters()
        ):
            for factor, parameter in _head_parameters(module):
                claim(parameter, head[factor])
    own_rates: dict[float, list[nn.Parameter]] = defaultdict(list)
    for module in model.modules():
        for rate, parameter in _rated_parameters(module):
            claim(parameter, own_rates[rate])
    for module in model.modules():
        for manifold, parameter in _declared_parameters(module):
            if manifold == "stiefel" or (manifold, core) == ("core", "spectral"):
                claim(parameter, kinds[manifold])
    for parameter in model.parameters():
        claim(parameter, kinds["euclidean"])

    own: dict[str, dict[str, Any]] = {
        "stiefel": {"weight_decay": 0.0, "update": update, "penalty": penalty},
        "core": {"weight_decay": weight_decay},
        "euclidean": {"weight_decay": weight_decay},
    }
    groups: list[dict[str, Any]] = [
        {"name": name, "manifold": name, "params": kinds[name], "lr": lr, **options}
        for name, options in own.items()
    ]
    groups += [
        {"name": DEVIATIONS, "params": parameters, "lr": rate, "weight_decay": 0.0}
        for rate, parameters in sorted(own_rates.items())
    ]
    for factor, parameters in sorted(head.items(), reverse=True):
        name = "head" if factor == 1 else f"head*{factor:g}"
        decay = {"lr": head_lr * factor, "weight_decay": head_weight_decay}
        groups.append({"name": name, "params": parameters, **decay})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError(
            f"the model ({type(model).__name__}) has no trainable parameter; add an adapter or a "
            "head, or set requires_grad on what should be trained"
        )
    return groups


def _declared_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    # Read from the class: wrappers forward unknown attributes of an instance to what they wrap.
    for name, manifold in (getattr(type(module), "manifolds", None) or {}).items():
        where = f"{type(module).__name__}.manifolds[{name!r}]"
        if manifold not in MANIFOLDS:
            raise ConfigError(f"{where} is {manifold!r}.{nearest(manifold, MANIFOLDS)}")
        held = getattr(module, name, None)
        if not isinstance(held, (nn.Parameter, nn.Module)):
            raise ConfigError(
                f"{where} names an attribute that is {type(held).__name__}; a Parameter or a "
                "module of parameters (ParameterDict) was expected"
            )
        for parameter in [held] if isinstance(held, nn.Parameter) else held.parameters():
            yield manifold, parameter


def _rated_parameters(module: nn.Module) -> Iterator[tuple[float, nn.Parameter]]:
    if hasattr(type(module), "own_rates"):
        named = dict(module.named_parameters())
        for name, rate in module.own_rates().items():  # type: ignore[operator]
            yield rate, named[name]


def _head_parameters(module: nn.Module) -> Iterator[tuple[float, nn.Parameter]]:
    factors = module.lr_factors() if hasattr(type(module), "lr_factors") else {}  # type: ignore[operator]
    named = dict(module.named_parameters())
    for name, factor in factors.items():
        if name not in named:
            raise ConfigError(
                f"{type(module).__name__}.lr_factors() names {name!r}, which is not one of its "
                f"parameters.{nearest(name, named)}"
            )
        if not (math.isfinite(factor) and factor > 0):
            raise ConfigError(
                f"{type(module).__name__}.lr_factors()[{name!r}] is {factor!r}; a positive "
                "number was expected"
            )
    for name, parameter in named.items():
        yield float(factors.get(name, 1.0)), parameter
