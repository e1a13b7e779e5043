"""Exports a PoLAR adapter as a plain LoRA folder that needs no bayestune to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from bayestune.errors import ModelError, nearest
from bayestune.peft.config import PolarConfig
from bayestune.peft.layer import PolarLinear

__all__ = ["export_lora"]


def export_lora(
    peft_model: PeftModel, directory: str | Path, adapter_name: str = "default"
) -> Path:
    """Write a PoLAR adapter as the LoRA that computes the same function.

    ``ΔW = s · X Θ Yᵀ`` is the product of ``lora_B = s · X Θ`` and ``lora_A = Yᵀ`` at the same
    rank, so that no singular value decomposition is needed and nothing is lost; the LoRA scale is
    one (``lora_alpha = r``). Modules trained in full, such as the head, go along unchanged.

    Args:
        peft_model: a model with a PoLAR adapter, as `peft.get_peft_model` returns it.
        directory: folder to write; created if missing, its adapter files replaced.
        adapter_name: which adapter to export.

    Returns:
        The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ModelError: the model has no adapter of this name, or it is not PoLAR.
    """
    config = _polar_config(peft_model, adapter_name)
    state = get_peft_model_state_dict(peft_model, adapter_name=adapter_name)
    for path, layer in peft_model.named_modules():
        if isinstance(layer, PolarLinear) and adapter_name in layer.polar_X:
            for name in layer.adapter_layer_names:
                del state[f"{path}.{name}"]
            state.update(_lora_tensors(layer, adapter_name, path))
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / SAFETENSORS_WEIGHTS_NAME, state)
    _write(folder / CONFIG_NAME, _lora_config(config))
    return folder


def _polar_config(peft_model: PeftModel, adapter_name: str) -> PolarConfig:
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
    config = configs[adapter_name]
    if not isinstance(config, PolarConfig):
        raise ModelError(
            f"Adapter {adapter_name!r} is {config.peft_type.value}, but export_lora converts "
            "PoLAR. A LoRA adapter is saved with save_pretrained; a contextual one has no LoRA."
        )
    return config


@torch.no_grad()
def _lora_tensors(layer: PolarLinear, adapter_name: str, path: str) -> dict[str, Tensor]:
    X, theta, Y = (getattr(layer, n)[adapter_name].double() for n in layer.adapter_layer_names)
    dtype = layer.polar_X[adapter_name].dtype
    B = X @ (layer.scaling[adapter_name] * theta)  # (out, r)
    return {f"{path}.lora_A.weight": Y.T.to(dtype), f"{path}.lora_B.weight": B.to(dtype)}


def _lora_config(config: PolarConfig) -> dict[str, Any]:
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
    lora = LoraConfig(r=config.r, lora_alpha=config.r, inference_mode=True, **settings)
    plain = lora.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in plain.items()}


def _write(path: Path, content: dict[str, Any]) -> None:
    # A reader never sees half a file: it is written beside its place and moved there.
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".json":
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in content.items()}
        save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(path)
