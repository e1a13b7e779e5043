"""The part of a PEFT layer that every additive adapter shares: forward, merge, unmerge, devices."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _get_in_out_features,
    check_adapters_to_merge,
)
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn

from bayestune.errors import NumericsError

__all__ = ["AdditiveLinear"]


class AdditiveLinear(nn.Module, BaseTunerLayer):
    """A linear layer with adapters on top: ``y = W₀ x + b + Σ_a ΔW_a x``.

    A subclass keeps its parameters in `nn.ParameterDict` attributes named in
    ``adapter_layer_names`` and keyed by adapter name, and defines `update_layer`, `delta` and
    `get_delta_weight`. Adapter parameters are float32 whatever the base layer's precision
    (float64 under a float64 base); the result has the precision of the base layer's.

    Args:
        base_layer: the linear layer, plain or quantised, or another tuner's layer around one.
        adapter_name: name of the first adapter.
        config: its settings.
        get_apply_tensor_subclass: how torchao quantises again after a merge, if it is in use.
    """

    base_layer: nn.Module

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: PeftConfig,
        *,
        get_apply_tensor_subclass: Any = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        linear = self.get_base_layer()
        sizes: Any = _get_in_out_features(linear)
        self.in_features: int = sizes[0]
        self.out_features: int = sizes[1]
        self.quantization_backend = resolve_quantization_backend(
            linear, get_apply_tensor_subclass=get_apply_tensor_subclass
        )
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._disable_adapters = False
        self._weight_before_merge: Tensor | None = None
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        for name in self.other_param_names:
            setattr(self, name, {})
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @abstractmethod
    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Create the parameters of one adapter, through `add_parameters` at the end."""

    @abstractmethod
    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        """Return ``ΔW x`` for inputs ``(..., in)`` as ``(..., out)``, without forming ΔW."""

    @abstractmethod
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return ΔW ``(out, in)`` in the adapter's precision."""

    def add_parameters(
        self, adapter_name: str, tensors: dict[str, Tensor], *, inference_mode: bool
    ) -> None:
        """Store one adapter's tensors, by attribute name, on the base layer's device."""
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        for name, tensor in tensors.items():
            getattr(self, name)[adapter_name] = nn.Parameter(tensor.to(device))
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def adapter_dtype(self) -> torch.dtype:
        """The precision of new adapter parameters: float64 under a float64 base, else float32."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return torch.float64 if dtype == torch.float64 else torch.float32

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the base layer and add every active adapter that is not merged into it."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in self._present(self.active_adapters):
            result = result + self.delta(name, x)
        return result.to(dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW of the adapters to the base weight, in the adapter's precision, rounded once each.

        The untouched weight is kept until `unmerge`, so that a merge can be undone bit by bit; it
        costs one more copy of the adapted weights, which `merge_and_unload` frees layer by layer.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: what to merge; None merges the active adapters.

        Raises:
            NumericsError: ``safe_merge`` found a weight that is NaN or infinite.
        """
        for name in self._present(check_adapters_to_merge(self, adapter_names)):
            weight = self.get_base_weight()
            merged = weight + self.get_delta_weight(name).to(weight.device)
            if safe_merge and not torch.isfinite(merged).all():
                raise NumericsError(
                    f"Merging adapter {name!r} gives weights that are NaN or infinite; the "
                    "adapter's parameters are damaged. Restore them from an earlier checkpoint."
                )
            if self._weight_before_merge is None and self.quantization_backend is None:
                self._weight_before_merge = weight
            self.set_base_weight(merged.to(weight.dtype))
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take every merged adapter out again.

        A plain base weight comes back bit-equal to what it was before the first merge. A quantised
        one is dequantised, reduced by ΔW and quantised again, which rounds.
        """
        if self._weight_before_merge is not None:
            weight = self.get_base_weight()
            self.set_base_weight(self._weight_before_merge.to(weight.device, weight.dtype))
            self._weight_before_merge = None
            self.merged_adapters.clear()
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop())
            weight = self.get_base_weight()
            self.set_base_weight((weight - delta.to(weight.device)).to(weight.dtype))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """An additive update has an equivalent LoRA."""
        return True

    def _present(self, names: list[str]) -> list[str]:
        here = self._get_available_adapters()
        return [name for name in names if name in here]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT would also cast to the base layer's precision, and bfloat16 breaks orthonormality.
        if device is None:
            device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter_name in parameters and not parameters[adapter_name].is_meta:
                parameters[adapter_name].data = parameters[adapter_name].data.to(device)

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)
