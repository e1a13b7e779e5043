"""Exports a PoLAR or LoRA adapter as a plain LoRA folder that needs no bayestune to load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from bayestune.errors import ModelError, nearest
from bayestune.peft.config import PolarConfig, stable
from bayestune.peft.contextual import has_context
from bayestune.peft.layer import PolarLinear

__all__ = ["export_lora", "lora_factors", "lora_settings", "write_lora"]

#: Starts of LoRA that leave the base as it is; the others put a part of it into the adapter.
_HARMLESS = ("gaussian", "orthogonal", "eva")


def export_lora(
    peft_model: PeftModel, directory: str | Path, adapter_name: str = "default"
) -> Path:
    """Write a PoLAR or LoRA adapter as the plain LoRA that computes the same function.

    The factors are those of `lora_factors`, at the same rank; the LoRA scale is one
    (``lora_alpha = r``). Modules trained in full, such as the head, go along unchanged.

    Args:
        peft_model: a model with such an adapter, as `peft.get_peft_model` returns it.
        directory: folder to write; created if missing, its adapter files replaced.
        adapter_name: which adapter to export.

    Returns:
        The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ModelError: the model has no adapter of this name, or no plain LoRA computes the same.
    """
    if not isinstance(peft_model, PeftModel):
        raise ModelError(
            f"export_lora needs a PeftModel, got {type(peft_model).__name__}. Wrap the base model "
            "with peft.get_peft_model or load the adapter with peft.PeftModel.from_pretrained."
        )
    configs: dict[str, Any] = dict(peft_model.peft_config)
    if adapter_name not in configs:
        raise ModelError(
            f"The model has no adapter {adapter_name!r}.{nearest(adapter_name, configs)}"
        )
    settings = lora_settings(configs[adapter_name])
    factors = lora_factors(peft_model, adapter_name)
    state = get_peft_model_state_dict(peft_model, adapter_name=adapter_name)
    for path, (A, B) in factors.items():
        for key in [key for key in state if key.startswith((f"{path}.lora_", f"{path}.polar_"))]:
            del state[key]
        state |= {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
    return write_lora(directory, settings, state)


@torch.no_grad()
def lora_factors(
    model: nn.Module, adapter_name: str = "default"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors ``ΔW = B A`` of every adapted layer, the scale within B.

    Of PoLAR, ``ΔW = s · X Θ Yᵀ``: ``A = Yᵀ`` and ``B = s · X Θ``, so that no singular value
    decomposition is needed and nothing is lost. Of LoRA: its own A, and ``s · B``.

    Args:
        model: any module that holds adapted layers.
        adapter_name: whose.

    Returns:
        A ``(r, in)`` and B ``(out, r)`` by the path of the layer.

    Raises:
        ModelError: a layer's update is not the product of two such factors.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, PolarLinear) and adapter_name in layer.polar_X:
            X, theta, Y = (
                getattr(layer, name)[adapter_name].double() for name in layer.adapter_layer_names
            )
            B = X @ (layer.scaling[adapter_name] * theta)  # (out, r)
            dtype = layer.polar_X[adapter_name].dtype
            found[path] = Y.T.to(dtype), B.to(dtype)
        elif isinstance(layer, LoraLayer) and adapter_name in layer.r:
            down: Any = dict(layer.lora_A.items()).get(adapter_name)
            if (
                not isinstance(layer, LoraLinear)
                or has_context(layer, adapter_name)
                or adapter_name in layer.lora_variant
                or layer.lora_bias[adapter_name]
                or down is None
            ):
                raise ModelError(
                    f"{path}: the update is not a product of two matrices (it depends on the "
                    "token, has a bias or a variant of LoRA, or is no linear layer's): no plain "
                    "LoRA computes it."
                )
            up: Any = layer.lora_B[adapter_name].weight
            B = (layer.scaling[adapter_name] * up.double()).to(up.dtype)
            found[path] = down.weight.detach(), B
    return found


def lora_settings(config: Any) -> dict[str, Any]:
    """Return the content of ``adapter_config.json`` for the factors of `lora_factors`.

    Args:
        config: the adapter's own configuration.

    Raises:
        ModelError: it is of an adapter that no plain LoRA stands for.
    """
    kind = getattr(config.peft_type, "value", config.peft_type)
    if not isinstance(config, PolarConfig) and kind != "LORA":
        raise ModelError(
            f"The adapter is {kind}, but export converts PoLAR and LoRA: no plain LoRA computes "
            "what another one does."
        )
    start = getattr(config, "init_lora_weights", True)
    if (isinstance(start, str) and start not in _HARMLESS) or getattr(
        config, "target_parameters", None
    ):
        raise ModelError(
            f"A LoRA with init_lora_weights={start!r} or target_parameters changes the base: "
            "convert it to a regular LoRA with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion) and export that."
        )
    kept = (
        "task_type",
        "base_model_name_or_path",
        "revision",
        "auto_mapping",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
    )
    settings = {name: getattr(config, name) for name in kept}
    for name in ("bias", "fan_in_fan_out", "rank_pattern"):
        if hasattr(config, name):
            settings[name] = getattr(config, name)
    # The scale of a layer is alpha over rank: equal patterns make it one everywhere.
    settings["alpha_pattern"] = dict(settings.get("rank_pattern", {}))
    lora = LoraConfig(r=config.r, lora_alpha=config.r, inference_mode=True, **settings)
    return stable(lora.to_dict())


def write_lora(directory: str | Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write a LoRA folder, each of its two files whole or not at all; return the folder."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / SAFETENSORS_WEIGHTS_NAME, tensors)
    _write(folder / CONFIG_NAME, settings)
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    # A reader never sees half a file: it is written beside its place and moved there.
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".json":
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in content.items()}
        save_file(tensors, partial, metadata={"format": "pt"})
    with partial.open("rb") as stream:  # or a loss of power may leave the name without it
        os.fsync(stream.fileno())
    partial.replace(path)
