"""guarantees.json: what a calibrated model promises, beside the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayestune.errors import StoreError
from bayestune.files import read_json, write_json
from bayestune.guarantees import Guarantees
from bayestune.model import BayesModel
from bayestune.prediction import SCORES
from bayestune.store.card import write_card
from bayestune.store.manifest import MANIFEST, digest_of, model_folder, read_manifest

FORMAT = 1
GUARANTEES = "guarantees.json"

logger = logging.getLogger(__name__)


def save_guarantees(model: BayesModel, path: str | Path) -> Path:
    """Write what a model promises beside it as it lies there, in the place of what it promised.

    Its card states the new promises. The model itself is not written again: what was changed by
    loading it (``base``, ``device``) stays out of its folder.

    Args:
        model: loaded from there and calibrated.
        path: a run's folder or its ``model`` folder.

    Returns:
        The file.

    Raises:
        StoreError: if no model lies there, or the file cannot be written.
    """
    folder = model_folder(path)
    write_guarantees(model, folder, read_manifest(folder)["digest"])
    write_card(folder)
    return folder / GUARANTEES


def write_guarantees(model: BayesModel, folder: Path, digest: str) -> None:
    """Write what a model promises, if anything, for the description with this digest."""
    if model.guarantees is not None:
        content = {"format": FORMAT, "model": digest, **model.guarantees.to_json()}
        write_json(folder / GUARANTEES, {**content, "digest": digest_of(content)})


def read_guarantees(model: BayesModel, folder: Path, digest: str) -> Guarantees | None:
    """Return what a stored model promises; None where nothing, or not as it was loaded.

    Args:
        model: loaded, with other ``samples`` or another ``dtype`` perhaps.
        folder: its folder.
        digest: of its description.

    Raises:
        StoreError: if the file is damaged, of another format or of another model.
    """
    file = folder / GUARANTEES
    if not file.exists():
        return None
    content = read_json(file)
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise StoreError(
            f"{file} has format {content.get('format')!r}; this version reads {FORMAT}. Install "
            "the bayestune that wrote it, run bayestune calibrate again, or remove it for a model "
            "that promises nothing."
        )
    try:
        if content["digest"] != digest_of(content):
            raise ValueError("its checksum is not the recorded one")
        if content["model"] != digest:
            raise ValueError(f"it was made for another model than {MANIFEST} describes")
        found = Guarantees.from_json(content)
        found.report()  # everything that follows from its numbers
        if found.abstain is not None and found.abstain.by not in SCORES:
            raise ValueError(f"there is no score {found.abstain.by!r}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(
            f"{file} is damaged or was changed: {error}. Run bayestune calibrate again, or remove "
            "it for a model that promises nothing."
        ) from error
    if found.settings != model.settings:
        logger.warning(
            "%s was calibrated with %s and is loaded with %s: what it promised does not hold, so "
            "no sets or abstentions are given; calibrate it as it is to be used",
            folder,
            *(_words(settings) for settings in (found.settings, model.settings)),
        )
        return None
    return found


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
