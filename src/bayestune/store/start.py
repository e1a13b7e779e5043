"""A method that follows a training starts from a model that is trained already."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayestune.config import from_mapping, to_mapping
from bayestune.errors import ConfigError
from bayestune.files import verify
from bayestune.model import BayesModel
from bayestune.store.manifest import model_folder, read_manifest, unreadable
from bayestune.store.model import restore

#: What of a recipe determined the training; the method, and what follows it, is free.
_TRAINING = ("model", "revision", "dtype", "quantize", "seed", "adapter", "prompt", "head", "train")
#: What must be as it was trained.
_SAME = ("adapter", "prompt")


def recipe_of(path: str | Path) -> dict[str, Any]:
    """Return what determined the training of a stored model, as nested recipe values.

    Raises:
        StoreError: if no model lies there, or it is damaged.
    """
    folder = model_folder(path)
    recipe = _part(read_manifest(folder), folder, "recipe")
    return {key: recipe[key] for key in _TRAINING if key in recipe}


def start_from(model: BayesModel, path: str | Path) -> dict[str, Any]:
    """Put what a stored model has learnt in the place of a training.

    Args:
        model: of a method that follows a training; changed in place.
        path: a run's folder or its ``model`` folder.

    Returns:
        What was chosen in that training, and where it came from.

    Raises:
        ConfigError: if the method trains by itself, the stored one is of none that it follows, or
            adapter, prompt, backbone or classes are others.
        StoreError: if no model lies there, or it is damaged.
    """
    folder = model_folder(path)
    manifest = read_manifest(folder)
    verify(folder, _part(manifest, folder, "checksums"))
    # Keys that an earlier version did not write had today's defaults.
    recipe = to_mapping(from_mapping(_part(manifest, folder, "recipe"), where=str(folder)))
    method = model.method
    if recipe["method"] not in method.after:
        raise ConfigError(
            f"{path} is a model of {recipe['method']!r}; {method.name!r} "
            + (
                f"starts from one of {' or '.join(method.after)}."
                if method.after
                else "trains its adapter by itself and starts from none."
            )
        )
    mine = to_mapping(model.recipe)
    for section in _SAME:
        for key, value in mine[section].items():
            if value != recipe[section].get(key):
                raise ConfigError(
                    f"{section}.{key} is {value!r}, but {path} was trained with "
                    f"{recipe[section].get(key)!r}: give that, or train anew."
                )
    base = _part(manifest, folder, "base")
    if base["weights"] != model.source.weights and base["fingerprint"] != model.source.fingerprint:
        raise ConfigError(f"{path} was trained on another backbone than {model.source.name!r}.")
    stored, own = _part(manifest, folder, "task"), model.task.schema()
    if (stored["kind"], stored["labels"]) != (own["kind"], own["labels"]):
        raise ConfigError(f"{path} was trained on a task of another kind or other classes.")
    if manifest.get("scaling", {}) != asdict(model.scaling) and own["kind"] == "regression":
        raise ConfigError(f"{path} was trained on numbers of another scale: give the same rows.")
    head = _part(manifest, folder, "head")
    if head["kind"] != type(model.head).__name__:
        raise ConfigError(f"{path} has a head of another kind ({head['kind']}).")
    restore(model, type(model.head), folder)
    chosen = manifest.get("notes", {}).get("chosen", {})
    kept = {k: v for k, v in chosen.items() if k in ("kl", "kl_tried") or k.startswith("best_")}
    return {**kept, "started_from": {"method": recipe["method"], "digest": manifest["digest"]}}


def _part(manifest: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(manifest[name])
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(folder, manifest, f"{name!r} is missing or wrong") from error
