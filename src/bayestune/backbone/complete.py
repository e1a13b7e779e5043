"""Whether a checkpoint can hold, and holds, every weight of the transformer it is loaded into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bayestune.errors import ModelError

#: Parts that are replaced (a classifier's head) or never read (an encoder's pooler).
_UNUSED = ("score.", "pooler.")


def check_complete(name: str, loading_info: Mapping[str, Any]) -> None:
    """Refuse a model of which a part would stay at random values.

    Args:
        name: what the user called the model.
        loading_info: what transformers' ``from_pretrained(output_loading_info=True)`` reports.

    Raises:
        ModelError: naming the first missing weight.
    """
    keys: Iterable[str] = loading_info.get("missing_keys", ())
    missing = sorted(k for k in keys if not any(f".{part}" in f".{k}" for part in _UNUSED))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{name} is incomplete: it lacks the weights {missing[0]}{more}. Fetch or convert it "
            "again."
        )


def check_size(name: str, config: Any, size: int) -> None:
    """Refuse a configuration of a model that its weight files are too small for, before it is made.

    A digit too many would make millions of layers, or tensors of terabytes, before anything is
    compared with the files.

    Args:
        name: what the user called the model.
        config: of transformers.
        size: bytes of all weight files.

    Raises:
        ModelError: naming the number that is too large, or is none.
    """
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    for key in (_LAYERS, *_BESIDE_WIDTH):
        value = getattr(text, key, None)
        if not isinstance(value, int) or not isinstance(width, int):
            continue  # transformers has its own names for it, or says what is wrong
        # Each layer has an entry in the files' headers; a number takes half a byte at least.
        needed = 64 * value if key == _LAYERS else value * width // 2
        if not 0 <= needed <= size:
            raise ModelError(
                f"{name} has {key} = {value} in its configuration, for which its weight files are "
                f"too small ({size} bytes): one of the two is damaged."
            )


_LAYERS = "num_hidden_layers"
#: Sizes of matrices whose other side is the width.
_BESIDE_WIDTH = ("vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
