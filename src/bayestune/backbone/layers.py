"""The stack of layers inside a transformer, and which of them a recipe adapts."""

from __future__ import annotations

from typing import Any

from torch import nn

from bayestune.errors import ConfigError, ModelError


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a transformer's layers: the longest list of one class.

    A list within a layer (of experts, say) is not the stack, however long it is.

    Raises:
        ModelError: if the model has no list of layers.
    """
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and len({type(layer) for layer in module}) == 1
        and any(isinstance(m, nn.Linear) or hasattr(m, "base_layer") for m in module[0].modules())
    ]
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no list of alike layers with linear modules to adapt."
        )
    within = tuple(f"{name}." for name, _ in stacks)
    outermost = [stack for stack in stacks if not stack[0].startswith(within)]
    return max(outermost, key=lambda stack: (len(stack[1]), -stack[0].count(".")))


def parse_layers(spec: str, count: int) -> list[int]:
    """Return the indices of the layers to adapt, in order.

    Args:
        spec: ``all``, ``top:8``, ``top:25%`` (rounded up) or indices such as ``0,4,8``.
        count: how many layers the backbone has.

    Raises:
        ConfigError: if the specification is not one of these or goes beyond the backbone.
    """
    text = spec.strip().lower()
    wrong = ConfigError(
        f"adapter.layers is {spec!r}; expected all, top:N, top:N% or indices of the {count} layers "
        f"(0 to {count - 1})."
    )
    try:
        if text == "all":
            return list(range(count))
        if text.startswith("top:"):
            share = text.removeprefix("top:")
            if share.endswith("%"):
                percent = float(share[:-1])
                top = -int(-count * percent // 100) if 0 < percent <= 100 else 0
            else:
                top = int(share)
            if not 1 <= top <= count:
                raise wrong
            return list(range(count - top, count))
        indices = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise wrong from None
    if not indices or indices[0] < 0 or indices[-1] >= count:
        raise wrong
    return indices


def hidden_size(config: Any) -> int:
    """Return D, the width of the final hidden state.

    Raises:
        ModelError: if the configuration does not say.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "hidden_size", None)
    if not isinstance(size, int):
        raise ModelError(f"{type(config).__name__} does not name a hidden_size.")
    return size
