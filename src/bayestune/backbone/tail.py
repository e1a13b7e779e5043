"""What follows the attention of the last layer, for the one token of a text that is pooled.

    h ← h + attention(h);   h ← h + mlp(h);   φ = norm(h)[pooled]

Behind the last attention no token reads another, so that output projection and MLP need one row
per text instead of T. Their inputs are cut to it, ``(B, 1, D)``, and what they add is broadcast
over the others, whose states nobody reads. It is the model's own forward, and `Backbone` measures
on real tokens that it leaves the features as they are before anything relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from bayestune.backbone.pool import pick

#: What works token by token in a layer, as transformers' decoders call it.
_TOKENWISE = ("self_attn.o_proj", "mlp")


def tokenwise(layer: nn.Module, random: bool) -> list[nn.Module]:
    """Return the parts of a layer behind its attention that see one token at a time.

    Args:
        layer: the last one.
        random: whether adapter weights are; parts that hold some are left out, since their noise
            may be that of a token's position.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = dict(layer.named_modules())
    parts = [named[name] for name in _TOKENWISE if name in named]
    return [p for p in parts if not random or not _holds(p, BaseTunerLayer)]


def _holds(part: nn.Module, kind: type) -> bool:
    return any(isinstance(module, kind) for module in part.modules())


@contextmanager
def only_pooled(modules: Sequence[nn.Module], index: Tensor, length: int) -> Iterator[None]:
    """Feed modules one token of each text.

    Args:
        modules: what `tokenwise` returned.
        index: the token of each text ``(B,)``.
        length: T, with which inputs ``(B, T, ·)`` are told from others, which stay whole.
    """

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:-1] != (len(index), length):
            return None
        return (pick(args[0], index).unsqueeze(1), *args[1:])  # (B, 1, D)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(cut).remove)
        yield
