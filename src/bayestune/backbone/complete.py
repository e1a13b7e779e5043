"""Whether a checkpoint holds every weight of the transformer it is loaded into."""

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
