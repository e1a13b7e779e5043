"""What the parts of the adapter contract share: questions to the adapter, and helpers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft_tiny import TARGETS, adapted
from torch import Tensor, nn

KINDS = pytest.mark.parametrize("kind", ["llama", "bert"])


class ContractBase(ABC):
    """A subclass says which config and how to move off the start."""

    #: Whether a load with ``low_cpu_mem_usage`` keeps float32 factors on a bfloat16 base.
    lazy_is_exact = False

    @abstractmethod
    def make_config(self, **settings: Any) -> PeftConfig:
        """A config of rank at most 4 with these settings."""

    @abstractmethod
    def disturb(self, layer: Any, adapter: str, generator: torch.Generator) -> None:
        """Overwrite the layer's parameters such that its adapter clearly does something."""

    def wrap(self, base: nn.Module, kind: str = "llama", **settings: Any) -> PeftModel:
        config = {"target_modules": list(TARGETS[kind]), "task_type": "SEQ_CLS", **settings}
        model = get_peft_model(base, self.make_config(**config))
        self.disturb_all(model, "default", seed=2)
        return model

    def disturb_all(self, model: nn.Module, adapter: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, layer in adapted(model):
                if adapter in layer._get_available_adapters():
                    self.disturb(layer, adapter, generator)

    def names(self, model: nn.Module) -> set[str]:
        return {name for name, _ in adapted(model)}

    def parameters(self, layer: Any, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of one adapter, by their names in its file."""
        for name in layer.adapter_layer_names:
            held = getattr(layer, name)
            if adapter not in held:
                continue
            if isinstance(held[adapter], nn.Parameter):
                yield name, held[adapter]
            else:
                yield from ((f"{name}.{k}", p) for k, p in held[adapter].named_parameters())


class AdditiveBase(ContractBase):
    """A subclass also says what ΔW is."""

    lazy_is_exact = True

    @abstractmethod
    def dense_delta(self, layer: Any, adapter: str) -> Tensor:
        """ΔW ``(out, in)`` written down from the layer's parameters, independently of its code."""
