"""Contextual LoRA: between A and B stands a matrix that depends on the token.

    y = W₀ x + s · B E(u) u,   u = A x,   E(u) = mat(W₂ φ(W₁ u + b₁) + b₂) ∈ R^{r×r}

The network starts as the constant identity, so that the adapter starts as plain LoRA. What it adds
is not linear in x: there is no ΔW, nothing to merge, and no LoRA that computes it. Its own adapter
type keeps PEFT from taking A and B for one.

Source: C-LoRA (arXiv 2505.17773).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from bayestune.errors import ConfigError, ModelError
from bayestune.peft.config import stable
from bayestune.peft.register import method_key
from bayestune.peft.targets import check_name

__all__ = ["Context", "ContextualDown", "ContextualLoraConfig", "ContextualLoraModel"]

_NAME = "CONTEXTUAL_LORA"


@dataclass
class ContextualLoraConfig(LoraConfig):
    """Settings of contextual LoRA: those of LoRA and the size of the network.

    Args:
        hidden: units of the network that gives E(u).

    Raises:
        ConfigError: it has no units.
    """

    hidden: int = field(default=64, metadata={"help": "Units of the network between A and B."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = method_key(_NAME)
        if self.modules_to_save is not None:
            self.modules_to_save = list(self.modules_to_save)  # PEFT extends it in place
        if self.hidden < 1:
            raise ConfigError(f"hidden must be a whole number of at least 1, got {self.hidden!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, sets sorted so that saved files are stable."""
        return {**stable(super().to_dict()), "peft_type": method_key(_NAME).value}


class Context(nn.Module):
    """The map ``u -> E(u) u``.

    Args:
        rank: r.
        hidden: units of the network.
    """

    def __init__(self, rank: int, hidden: int) -> None:
        super().__init__()
        self.rank = rank
        self.first = nn.Linear(rank, hidden)
        self.matrix = nn.Linear(hidden, rank * rank)
        with torch.no_grad():
            self.matrix.weight.zero_()
            self.matrix.bias.copy_(torch.eye(rank).flatten())

    def units(self, u: Tensor) -> Tensor:
        """Return what the network knows of a token, ``(..., hidden)``."""
        return F.relu(self.first(u))

    def matrices(self, u: Tensor) -> Tensor:
        """Return E(u), ``(..., r, r)``."""
        return self.matrix(self.units(u)).unflatten(-1, (self.rank, self.rank))

    def forward(self, u: Tensor) -> Tensor:
        """Return ``E(u) u``, ``(..., r)``."""
        return (self.matrices(u) @ u.unsqueeze(-1)).squeeze(-1)


class ContextualDown(nn.Linear):
    """A with the context behind it: what stands in the place of ``lora_A``."""

    def __init__(self, down: nn.Linear, hidden: int) -> None:
        super().__init__(down.in_features, down.out_features, bias=False, device="meta")
        self.weight = down.weight
        self.context = Context(down.out_features, hidden).to(self.weight)
        self.context.requires_grad_(self.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``E(A x) A x``, ``(..., r)``."""
        return self.context(super().forward(x))


class ContextualLoraModel(LoraModel):
    """Adapts the linear layers of a model with contextual LoRA."""

    def _create_and_replace(
        self,
        lora_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **options: Any,
    ) -> None:
        check_name(adapter_name)
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key, **options
        )
        layer: Any = getattr(parent, target_name)
        down = dict(layer.lora_A.items()).get(adapter_name)
        if not isinstance(down, nn.Linear) or adapter_name in layer.lora_variant:
            raise ModelError(
                f"{current_key!r} cannot have a contextual LoRA: it takes linear layers, and none "
                "of LoRA's variants."
            )
        layer.lora_A[adapter_name] = ContextualDown(down, lora_config.hidden)
        # PEFT merges by what this returns, whichever way it is asked to.
        layer.get_delta_weight = _refuse

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT looks for the name before the last part only, and a context lies deeper: its file
        # would hold the name, and load under no other.
        key = key.replace(f".lora_A.{adapter_name}.context.", ".lora_A.context.")
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _check_merge_allowed(self) -> None:
        _refuse()

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse: what depends on the token has no weighted sum."""
        _refuse()


def has_context(layer: LoraLayer, adapter: str) -> bool:
    """Return whether an adapter of a layer is contextual."""
    return adapter in layer.lora_A and isinstance(layer.lora_A[adapter], ContextualDown)


def _refuse(*_: Any) -> Tensor:
    raise ModelError(
        "A contextual LoRA depends on the token: there is no ΔW to merge, export or combine. Serve "
        "it as an adapter, or train adapter.kind=lora."
    )
