"""The state of a training run on disk, so that an interrupted one continues bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayestune.errors import StoreError
from bayestune.files import checksum, new_folder, read_json, verify, write_json

_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_KEYS = {"step", "epoch", "kappa", "kappas", "best", "history", "member", "recipe"}
_KEYS |= {"facts", "checksums"}


def trainable(backbone: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all that training changes: adapter parameters and the head's state."""
    # The head may also be part of the backbone's modules; it is kept under its own names.
    own = {id(p) for p in head.parameters()}
    tensors = {
        f"backbone.{name}": p.detach().clone()
        for name, p in backbone.named_parameters()
        if p.requires_grad and id(p) not in own
    }
    # A distribution over the adapter also has what no gradient moves.
    buffers = {
        f"backbone.{name}": b.detach().clone()
        for name, b in backbone.named_buffers()
        if name.startswith("weights.")
    }
    own_state = {f"head.{k}": v.detach().clone() for k, v in head.state_dict().items()}
    return tensors | buffers | own_state


def restore(backbone: nn.Module, head: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `trainable` returned."""
    parameters = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith("backbone."):
                parameters[name.removeprefix("backbone.")].copy_(tensor)
    head.load_state_dict(
        {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
    )


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that a training on a device draws from."""
    state = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(device: torch.device, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` returned; a state of another kind of device is left out."""
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)


def flatten(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors by dotted name and a JSON-ready rest."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for index, entries in state["state"].items():
        plain["state"][str(index)] = {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{name}"] = value.detach().contiguous()
            else:
                plain["state"][str(index)][name] = value
    return tensors, plain


def unflatten(
    prefix: str, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> dict[str, Any]:
    """Join what `flatten` split."""
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain["state"].items()}
    for key, tensor in tensors.items():
        if key.startswith(f"{prefix}."):
            index, name = key.removeprefix(f"{prefix}.").split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
    return {"param_groups": plain["param_groups"], "state": state}


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, with a checksum.

    Args:
        folder: the checkpoint's folder; replaced as a whole.
        tensors: all tensors by name.
        state: JSON-ready values.
    """
    with new_folder(folder) as staging:
        # safetensors refuses shared memory; optimisers keep their scalars as tensors of their own.
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            staging / _TENSORS,
        )
        sums = {_TENSORS: checksum(staging / _TENSORS)}
        write_json(staging / _STATE, {**state, "checksums": sums})


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        StoreError: if it is missing or damaged.
    """
    state = read_json(folder / _STATE)
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise StoreError(f"{folder / _STATE} is damaged: it is not the state of a training.")
    verify(folder, state.pop("checksums"))
    try:
        return load_file(folder / _TENSORS), state
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{folder} is damaged: {error}.") from error
