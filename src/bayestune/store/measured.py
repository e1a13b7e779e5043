"""evaluation.json: how good a saved model was found to be, beside the model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayestune.errors import StoreError
from bayestune.files import read_json, write_json
from bayestune.store.manifest import digest_of, read_manifest

FORMAT = 1
MEASURED = "evaluation.json"
_FIGURE = "reliability-{}.png"

logger = logging.getLogger(__name__)


def write_measured(folder: Path, content: Mapping[str, Any], figure: bytes | None = None) -> None:
    """Write what was measured of the model that lies in a folder, in the place of what was.

    Args:
        folder: the model's.
        content: plain JSON.
        figure: the reliability figure, as PNG; its name follows from what it shows, so that no
            card ever shows another one than it means.

    Raises:
        StoreError: if it cannot be written.
    """
    name = None
    if figure is not None:
        name = _FIGURE.format(hashlib.sha256(figure).hexdigest()[:12])
        try:
            (folder / name).write_bytes(figure)
        except OSError as error:
            raise StoreError(f"{folder / name} could not be written: {error.strerror}.") from error
    described = {
        "format": FORMAT,
        "model": read_manifest(folder)["digest"],
        **content,
        "figure": name,
    }
    write_json(folder / MEASURED, {**described, "digest": digest_of(described)})


def read_measured(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return what was measured of a model with this digest; None where nothing, or of another.

    A file that is damaged counts as none, with a warning: the model is what it was without it.
    """
    if not (folder / MEASURED).is_file():
        return None
    try:
        content = read_json(folder / MEASURED)
        if content["digest"] == digest_of(content) and content["format"] == FORMAT:
            if content["model"] != digest:
                return None
            if _fits(content):
                return content
    except (StoreError, KeyError, TypeError, ValueError, AttributeError):
        pass
    logger.warning("%s is damaged or was changed: its numbers are not stated", folder / MEASURED)
    return None


def _fits(content: Mapping[str, Any]) -> bool:
    """Whether all that a card and a page show of a measurement has the form they take it for."""
    data, rules, figure = content["data"], content["rules"], content["figure"]
    numbers = [*content["metrics"].values(), *content["promises"].values(), data["rows"]]
    for row, length in ((content["intervals"].values(), 2), (content["bins"], 5)):
        for each in row:
            numbers += each if len(each) == length else [None]
    return (
        all(isinstance(number, int | float) for number in numbers)
        and all(isinstance(text, str) for text in (data["name"], data["hash"]))
        and all(text is None or isinstance(text, str) for text in (rules, figure))
        and isinstance(content["settings"], Mapping)
    )


def drop_figures(folder: Path, keep: str | None) -> None:
    """Remove the figures of earlier measurements."""
    for file in folder.glob(_FIGURE.format("*")):
        if file.name != keep:
            file.unlink(missing_ok=True)
