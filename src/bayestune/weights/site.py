"""Where weights can be random: the small linear maps that an adapter is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peft.tuners.lora import LoraLayer
from torch import nn

from bayestune.errors import ModelError
from bayestune.peft import PolarLinear, has_context

Factor = Literal["A", "B", "core", "context"]


@dataclass(frozen=True)
class Site:
    """A linear map ``x -> weight @ x`` whose weight a distribution may be put over.

    Attributes:
        module: is called with x and returns the map's value; its forward hooks see both.
        weight: the parameter, ``(out, in)``.
        layer: the adapted layer that it belongs to, a tuner's; None for the head.
    """

    module: nn.Module
    weight: nn.Parameter
    layer: Any = None


def require_rank(sites: Mapping[str, Site]) -> None:
    """Raise ModelError where a layer is narrower than the rank of LoRA's factors."""
    for name, site in sites.items():
        rank, width = site.weight.shape
        narrow = min(width, *(B.weight.shape[0] for B in site.layer.lora_B.values()))
        if rank > narrow:
            raise ModelError(
                f"The rank {rank} exceeds the {narrow} inputs or outputs at {name}: lower "
                "adapter.rank or adapt other layers."
            )


def head_site(head: nn.Module) -> dict[str, Site]:
    """Return the one map of a linear head."""
    return {"head": Site(head, head.weight)}  # pyright: ignore[reportArgumentType]


def sites(peft_model: nn.Module, *factors: Factor, adapter: str = "default") -> dict[str, Site]:
    """Return the maps of all adapted layers, by the path of the layer and the factor's name.

    LoRA, ``ΔW = s · B A``, has the factors ``A`` and ``B``; PoLAR, ``ΔW = s · X Θ Yᵀ``, has the
    ``core`` Θ between its two frames. Contextual LoRA has the ``context`` between A and B, a small
    network on A's value; the weight of its site is the one that gives the matrix.

    Args:
        peft_model: the adapted model.
        factors: which of them; those that an adapter does not have are left out.
        adapter: its name.

    Raises:
        ModelError: if there are none.
    """
    found: dict[str, Site] = {}
    for path, layer in peft_model.named_modules():
        path = path.removeprefix("base_model.model.")
        for factor in factors:
            module: Any = None
            if isinstance(layer, LoraLayer) and factor == "context":
                if has_context(layer, adapter):
                    module = layer.lora_A[adapter].context
                    found[f"{path}.context"] = Site(module, module.matrix.weight, layer)
            elif isinstance(layer, LoraLayer) and factor != "core":
                maps: Any = layer.lora_A if factor == "A" else layer.lora_B
                # With a context behind it A's value is no linear map's.
                if adapter in maps and not (factor == "A" and has_context(layer, adapter)):
                    module = maps[adapter]
                    found[f"{path}.{factor}"] = Site(module, module.weight, layer)
            elif isinstance(layer, PolarLinear) and factor == "core" and adapter in layer.polar_X:
                theta = layer.polar_theta[adapter]
                found[f"{path}.core"] = Site(layer.core[adapter], theta, layer)
    if not found:
        raise ModelError(
            f"The adapter has no factor {' or '.join(factors)} to put a distribution over: LoRA "
            "has A and B, PoLAR has a core, contextual LoRA has a context."
        )
    return found
