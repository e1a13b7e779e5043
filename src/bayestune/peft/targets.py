"""Checks what an adapter is asked to adapt, before the model is touched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _find_minimal_target_modules,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import resolve_quantization_backend
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bayestune.errors import ModelError, nearest

__all__ = ["check_name", "check_targets", "is_adaptable"]


def check_name(adapter_name: str) -> None:
    """Raise ModelError for a name that no parameter can have: half a layer would carry it."""
    if not adapter_name or "." in adapter_name:
        raise ModelError(
            f"An adapter cannot be called {adapter_name!r}: its name is part of the names of "
            "parameters. Give one that is not empty and has no dot."
        )


def is_adaptable(module: nn.Module, **quantization: Any) -> bool:
    """Return whether a module is a linear layer, plain, quantised or already adapted."""
    base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(base, NonDynamicallyQuantizableLinear):
        # nn.MultiheadAttention reads this layer's weight and never calls the layer.
        return False
    if isinstance(base, nn.Linear):
        return True
    backend = resolve_quantization_backend(base, **quantization)
    return backend is not None and backend.layer_type == "linear"


def check_targets(config: Any, model: nn.Module, **quantization: Any) -> None:
    """Check that every target of a config exists, can be adapted and is large enough.

    ``"all-linear"`` is replaced by the names it stands for, restricted to ``layers_to_transform``
    and shortened to what tells them apart.

    Args:
        config: an adapter config whose ``target_modules`` is set.
        model: the model to adapt, as yet without this adapter.
        quantization: what `resolve_quantization_backend` needs besides the layer.

    Raises:
        ModelError: a target or layer index matches nothing, a target is no linear layer, or the
            rank is larger than a target's input or output.
    """
    modules = dict(_outside_adapters(model))
    linear = [name for name, m in modules.items() if is_adaptable(m, **quantization)]
    targets = config.target_modules
    every = isinstance(targets, str) and targets.lower() == "all-linear"
    if every:
        _maybe_include_all_linear_layers(config, model)
    _check_names(config, modules, linear)
    _check_layer_indices(config, modules)
    if every:
        wanted = config.layers_to_transform
        names = {
            n for n in config.target_modules if wanted is None or _in_layers(config, n, wanted)
        }
        # Short names also fit the same network under another head, where full paths differ.
        config.target_modules = _find_minimal_target_modules(names, set(modules) - names)
    matched = [name for name in modules if name and check_target_module_exists(config, name)]
    if not matched:
        raise ModelError(
            f"target_modules={_shown(config.target_modules)} leaves nothing to adapt: every match "
            f"is shut out by exclude_modules={_shown(config.exclude_modules)}, "
            f"modules_to_save={config.modules_to_save}, "
            f"layers_to_transform={config.layers_to_transform} or "
            f"layers_pattern={config.layers_pattern!r}."
        )
    for name in matched:
        _check_module(config, name, modules[name], name in linear)


def _outside_adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    inner: tuple[str, ...] = ()
    found = []
    for name, module in model.named_modules():
        if inner and name.startswith(inner):
            continue
        if isinstance(module, BaseTunerLayer):
            inner = (*inner, f"{name}.")
        found.append((name, module))
    return found


def _check_names(config: Any, modules: dict[str, nn.Module], linear: list[str]) -> None:
    targets = config.target_modules
    given = [targets] if isinstance(targets, str) else sorted(targets)
    missing = []
    for target in given:
        probe = _probe(target if isinstance(targets, str) else {target})
        if not any(check_target_module_exists(probe, name) for name in modules if name):
            missing.append(target)
    if not given:
        raise ModelError(
            "target_modules matches no layer: it is empty."
            + nearest("", dict.fromkeys(n.rpartition(".")[2] for n in linear))
        )
    if missing:
        ends = dict.fromkeys(name.rpartition(".")[2] for name in linear)
        valid = linear if "." in missing[0] else ends
        hint = (
            " A string is a regular expression for the whole module path; pass a list to match "
            "the end of it."
            if isinstance(targets, str)
            else ""
        )
        raise ModelError(
            f"target_modules not found in {type(next(iter(modules.values()))).__name__}: "
            f"{', '.join(map(repr, missing))}.{hint}{nearest(missing[0], valid)}"
        )


def _check_layer_indices(config: Any, modules: dict[str, nn.Module]) -> None:
    wanted = config.layers_to_transform
    if wanted is None or isinstance(config.target_modules, str):
        return
    ends = {name.rpartition(".")[2] for name in config.target_modules}
    for index in wanted if isinstance(wanted, list) else [wanted]:
        reached = (n for n in modules if n.rpartition(".")[2] in ends)
        if not any(_in_layers(config, n, index) for n in reached):
            raise ModelError(
                f"layers_to_transform names layer {index}, but no target in {_shown(ends)} lies in "
                f"a layer of that index (layers_pattern={config.layers_pattern!r}). Indices count "
                "from 0."
            )


def _check_module(config: Any, name: str, module: nn.Module, adaptable: bool) -> None:
    if not adaptable:
        kind = type(module).__name__
        raise ModelError(
            f"{name!r} is a {kind}, but only linear layers that their parent calls can be adapted. "
            "Remove it from target_modules or name it in exclude_modules."
        )
    base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    sizes: Any = _get_in_out_features(base)
    if config.r > min(sizes):
        raise ModelError(
            f"Rank r={config.r} is larger than layer {name!r} allows: it has {sizes[0]} inputs and "
            f"{sizes[1]} outputs. Take r ≤ {min(sizes)}, or name the layer in exclude_modules."
        )


def _in_layers(config: Any, name: str, indices: list[int] | int) -> bool:
    # PEFT ignores the indices where a target is the whole path, so ask with the end of the path; a
    # path of one part lies in no layer.
    _, dot, end = name.rpartition(".")
    settings = {"layers_to_transform": indices, "layers_pattern": config.layers_pattern}
    return bool(dot and check_target_module_exists(_probe({end}, **settings), name))


def _probe(target_modules: Any, **settings: Any) -> Any:
    return SimpleNamespace(target_modules=target_modules, **settings)


def _shown(names: Any) -> str:
    return repr(sorted(names) if isinstance(names, set) else names)
