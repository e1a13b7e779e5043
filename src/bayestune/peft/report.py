"""Reports what low-rank adapters have learnt: how large, of what rank, how orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayestune.geometry.rank import stable_rank_lora
from bayestune.geometry.stiefel import orthogonality_error, wide_dtype
from bayestune.peft.layer import PolarLinear

__all__ = ["AdapterRow", "adapter_report", "summarise"]


@dataclass(frozen=True)
class AdapterRow:
    """One adapter of one layer.

    Args:
        layer: path of the layer in the base model.
        adapter: name of the adapter.
        stable_rank: ``‖ΔW‖_F² / ‖ΔW‖₂²``, between 1 and r; 0 where ΔW = 0.
        norm: ``‖ΔW‖_F``, the scale ``s`` included.
        orthogonality_X: ``‖XᵀX − I‖_F``, 0 for LoRA.
        orthogonality_Y: ``‖YᵀY − I‖_F``, 0 for LoRA.
    """

    layer: str
    adapter: str
    stable_rank: float
    norm: float
    orthogonality_X: float  # noqa: N815
    orthogonality_Y: float  # noqa: N815


@torch.no_grad()
def adapter_report(model: nn.Module) -> list[AdapterRow]:
    """Describe every PoLAR and LoRA adapter on the linear layers of a model.

    With ``ΔW = L Rᵀ`` everything follows from the r × r matrices ``LᵀL`` and ``RᵀR``, in float64:
    ``‖ΔW‖_F² = tr(LᵀL RᵀR)``, and for the stable rank see `bayestune.geometry.stable_rank`.

    Args:
        model: a PEFT model, or any module with adapters injected into it.

    Returns:
        One row per layer and adapter, in the order of the model's modules.

    Raises:
        NumericsError: an adapter holds NaN or infinite values.

    Source: the stable rank as a measure of the rank in use, arXiv 2506.03133.
    """
    rows = []
    for path, layer in model.named_modules():
        name = path.removeprefix("base_model.model.")
        if isinstance(layer, PolarLinear):
            for adapter in layer.polar_X:
                errors = (
                    float(orthogonality_error(_wide(factor[adapter])))
                    for factor in (layer.polar_X, layer.polar_Y)
                )
                rows.append(_row(name, adapter, *layer.factors(adapter), *errors))
        elif isinstance(layer, LoraLayer):
            for adapter in layer.lora_A:
                A: Any = layer.lora_A[adapter]
                B: Any = layer.lora_B[adapter]
                if A.weight.ndim == 2:
                    left = layer.scaling[adapter] * B.weight
                    rows.append(_row(name, adapter, left, A.weight.T, 0.0, 0.0))
    return rows


def summarise(rows: Sequence[AdapterRow]) -> dict[str, float]:
    """Return what stands for all rows: the mean stable rank and the largest orthogonality error."""
    worst = (max(row.orthogonality_X, row.orthogonality_Y) for row in rows)
    return {
        "stable_rank": sum(row.stable_rank for row in rows) / max(1, len(rows)),
        "orthogonality_error": max(worst, default=0.0),
    }


def _row(
    layer: str, adapter: str, left: Tensor, right: Tensor, error_X: float, error_Y: float
) -> AdapterRow:
    left, right = _wide(left), _wide(right)
    square = ((left.T @ left) * (right.T @ right)).sum()  # tr(LᵀL RᵀR), as both are symmetric
    return AdapterRow(
        layer=layer,
        adapter=adapter,
        stable_rank=float(stable_rank_lora(left, right.T)),
        norm=float(square.clamp_min(0).sqrt()),
        orthogonality_X=error_X,
        orthogonality_Y=error_Y,
    )


def _wide(factor: Tensor) -> Tensor:
    return factor.to(wide_dtype(factor.device))
