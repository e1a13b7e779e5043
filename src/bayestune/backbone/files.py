"""Single files and tensors of a base's checkpoint, wherever it lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from bayestune.backbone.source import Source


def base_file(source: Source, name: str) -> Path | None:
    """Return a file of a base, fetched from the Hub where it lies there; None where it has none."""
    if source.local:
        path = Path(source.path) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    find: Callable[..., str | None] = cached_file
    found = find(
        source.path,
        name,
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return Path(found) if found else None


def base_tensors(source: Source, names: Iterable[str]) -> dict[str, Tensor]:
    """Return some tensors of a base's checkpoint by name, those that it has."""
    found: dict[str, Tensor] = {}
    for name in names:
        for file in weight_files(source, name):
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 - not a mapping
                    found[name] = tensors.get_tensor(name)
                    break
    return found


def weight_files(source: Source, tensor: str) -> Iterator[Path]:
    """Yield the weight files of a base that may hold a tensor."""
    if source.local:
        yield from sorted(Path(source.path).glob("*.safetensors"))
        return
    name = "model.safetensors"
    if (index := base_file(source, f"{name}.index.json")) is not None:
        name = json.loads(index.read_text())["weight_map"].get(tensor, "")
    if name and (file := base_file(source, name)) is not None:
        yield file
