"""A model that was updated, with everything around it as it lies on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from bayestune.errors import StoreError
from bayestune.files import checksum, new_folder, write_json
from bayestune.model import BayesModel
from bayestune.store.guarantees import GUARANTEES
from bayestune.store.manifest import (
    MANIFEST,
    digest_of,
    head_facts,
    model_folder,
    read_manifest,
    unreadable,
)
from bayestune.store.model import ADAPTER, METADATA, POSTERIOR, posterior_tensors

_MEAN = "score.weight"


def save_update(model: BayesModel, path: str | Path, out: str | Path | None = None) -> Path:
    """Write an updated model atomically: its posterior anew, all else as it lies there.

    What was changed by loading it (``base``, ``device``) stays out of its folder, and so do
    guarantees of the model as it was.

    Args:
        model: loaded from there and updated.
        path: a run's folder or its ``model`` folder.
        out: a new run's folder; None replaces the model at ``path``.

    Returns:
        The folder of the model.

    Raises:
        StoreError: if no model lies at ``path``, something lies at ``out``, or the disk is full.
    """
    source = model_folder(path)
    target = source if out is None else Path(out) / "model"
    if out is not None and target.exists():
        raise StoreError(f"{out} already holds a run; give another folder.")
    manifest = read_manifest(source)
    if not isinstance(manifest.get("checksums"), dict):
        raise unreadable(source, manifest, "it has no checksums")
    with new_folder(target) as folder:
        for file in source.iterdir():
            if file.name != GUARANTEES and file.is_file():
                shutil.copyfile(file, folder / file.name)
        adapter = load_file(source / ADAPTER)
        for name in adapter:
            if name.endswith(_MEAN):
                adapter[name] = model.head.weight.detach().cpu().to(adapter[name])  # pyright: ignore
        save_file(adapter, folder / ADAPTER, METADATA)
        save_file(posterior_tensors(model), folder / POSTERIOR, METADATA)
        changed = {name: checksum(folder / name) for name in (ADAPTER, POSTERIOR)}
        manifest |= {
            "head": head_facts(model),
            "notes": model.notes,
            "checksums": manifest["checksums"] | changed,
        }
        write_json(folder / MANIFEST, {**manifest, "digest": digest_of(manifest)})
    return target
