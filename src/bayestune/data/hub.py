"""Rows of a data set on the Hugging Face Hub, named ``hf:ORG/NAME[/CONFIG][:SPLIT]``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bayestune.errors import DataError

_FORM = "hf:ORG/NAME, hf:ORG/NAME/CONFIG or hf:NAME, each with :SPLIT after it or not"


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hub: ``name`` with its organisation, its configuration and its split."""

    name: str
    config: str | None = None
    split: str = "train"


def parse_hub(spec: str) -> HubSource:
    """Read ``hf:ORG/NAME/CONFIG:SPLIT``.

    One part is a data set without an organisation, two parts are always ``ORG/NAME`` and three are
    ``ORG/NAME/CONFIG``; a configuration therefore needs the organisation (``hf:nyu-mll/glue/sst2``,
    not ``hf:glue/sst2``). The split is what follows the first colon, slices included
    (``hf:stanfordnlp/imdb:train[:1000]``), and ``train`` where there is none.

    Raises:
        DataError: if the text has another form.
    """
    name, colon, split = spec.removeprefix("hf:").partition(":")
    parts = name.split("/")
    legal = all(re.fullmatch(r"[\w.-]+", part) for part in parts[:2]) and parts[-1].strip()
    if not spec.startswith("hf:") or len(parts) > 3 or not legal or (colon and not split.strip()):
        raise DataError(f"{spec!r} is not {_FORM}.")
    return HubSource("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train")


def hub_rows(spec: str) -> tuple[Iterator[tuple[int, Any]], dict[str, tuple[str, ...]]]:
    """Return the numbered rows and, by column, the class names that the data set declares.

    Raises:
        DataError: if ``datasets`` is not installed or the data set cannot be loaded.
    """
    source = parse_hub(spec)
    try:
        data = load_split(source)
    except ImportError as error:
        raise DataError(
            f"{spec}: reading from the Hub needs datasets; pip install 'bayestune[data]'."
        ) from error
    # Loading runs through network, cache and format code, whose errors share no base class.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{spec}: cannot be loaded ({reason})") from error
    features = getattr(data, "features", None) or {}
    names = {
        column: tuple(feature.names)
        for column, feature in features.items()
        if getattr(feature, "names", None)
    }
    if not len(data):
        raise DataError(f"{spec}: has no rows.")
    return enumerate(iter(data), start=1), names


def load_split(source: HubSource) -> Any:
    """Load one split with the ``datasets`` library, from its cache where it can."""
    import datasets

    return datasets.load_dataset(source.name, source.config, split=source.split)
