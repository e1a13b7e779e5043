"""bayestune.json: what a saved model is, beside its tensors."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bayestune.config import to_mapping
from bayestune.errors import StoreError
from bayestune.files import read_json, require_inside
from bayestune.head import GaussianHead
from bayestune.model import BayesModel
from bayestune.version import __version__

FORMAT = 1
MANIFEST = "bayestune.json"
#: Stands in a run's folder until its model is complete.
UNFINISHED = "unfinished"

logger = logging.getLogger(__name__)


def manifest_of(model: BayesModel, checksums: dict[str, str]) -> dict[str, Any]:
    """Return what describes a model beside its tensors, with a digest of itself."""
    import peft
    import transformers

    manifest = {
        "format": FORMAT,
        "method": model.method.name,
        "head": head_facts(model),
        "task": model.task.schema(),
        **({"scaling": asdict(model.scaling)} if model.task.kind == "regression" else {}),
        "pooling": model.backbone.pooling,
        "base": {
            "name": model.source.name,
            "revision": model.source.revision,
            "fingerprint": model.source.fingerprint,
            "weights": model.source.weights,
            "dtype": str(model.backbone.dtype).removeprefix("torch."),
        },
        "recipe": to_mapping(model.recipe),
        "notes": model.notes,
        "versions": {
            "bayestune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
        "checksums": checksums,
    }
    return {**manifest, "digest": digest_of(manifest)}


def head_facts(model: BayesModel) -> dict[str, Any]:
    """Return which head a model has."""
    facts: dict[str, Any] = {"kind": type(model.head).__name__}
    if isinstance(model.head, GaussianHead):
        facts |= {"family": model.head.family, "prior": model.head.prior}
    return facts


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the description of a model.

    Raises:
        StoreError: if it is damaged, was changed, is of another format, or a part of its folder
            leads outside.
    """
    require_inside(folder)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise StoreError(
            f"{folder / MANIFEST} has format {found!r}; this version reads {FORMAT}. Install the "
            f"bayestune that wrote it ({_written_by(manifest)}) or train again."
        )
    if "digest" not in manifest:
        raise unreadable(folder, manifest, "it has no digest, which this one needs")
    if manifest["digest"] != digest_of(manifest):
        raise StoreError(
            f"{folder / MANIFEST} is damaged or was changed. Copy it again from where it was "
            "trained; another place of the backbone is given with base=."
        )
    return manifest


def unreadable(folder: Path, manifest: Any, reason: object) -> StoreError:
    """Return the error for a description that is whole and says something else than is read here.

    Args:
        folder: where it lies.
        manifest: what it says.
        reason: what was expected of it.
    """
    return StoreError(
        f"{folder / MANIFEST} was written by another version of bayestune "
        f"({_written_by(manifest)}; this is {__version__}), or changed: {reason}. Install the one "
        "that wrote it, or train again."
    )


def model_folder(path: str | Path) -> Path:
    """Return the folder of the model, given it or the run around it.

    Raises:
        StoreError: if neither is there.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / MANIFEST).is_file():
            if folder != path and not folder.resolve().is_relative_to(path.resolve()):
                raise StoreError(
                    f"{folder} is a link that leads outside {path}: name the model's own folder."
                )
            if folder != path and (path / UNFINISHED).exists():
                logger.warning(
                    "%s is the model of an earlier run: the one that is to replace it did not "
                    "finish; continue it with bayestune train --resume",
                    folder,
                )
            return folder
    if not path.exists():
        raise StoreError(f"{path} does not exist; expected a run or a model saved by bayestune.")
    if (path / "adapter_config.json").is_file():
        raise StoreError(
            f"{path} is a PEFT adapter without {MANIFEST}. One that a BayesTrainer has saved is "
            "opened by bt.hf.to_bayes_model, whose save writes what is expected here."
        )
    hint = ""
    if (path / UNFINISHED).exists():
        hint = " Its training did not finish: continue it with bayestune train --resume."
    raise StoreError(f"{path} is not a run: it has no {MANIFEST} and no model/{MANIFEST}.{hint}")


def digest_of(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a description without its own digest."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _written_by(manifest: Any) -> str:
    try:
        return str(manifest["versions"]["bayestune"])
    except (KeyError, TypeError):
        return "unknown version"
