"""The pretrained LM head, from which answer letters start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayestune.backbone.assemble import Base
from bayestune.backbone.source import Source
from bayestune.errors import ModelError


def output_rows(source: Source, base: Base, token_ids: list[int]) -> Tensor:
    """Return the rows of the pretrained LM head for some tokens, ``(K, D)`` in fp32.

    Args:
        source: where the backbone came from.
        base: the loaded backbone; tied heads are its input embeddings.
        token_ids: K tokens.

    Raises:
        ModelError: if the checkpoint has no LM head.
    """
    transformer: Any = base.transformer
    if getattr(transformer.config, "tie_word_embeddings", False):
        embeddings = transformer.get_input_embeddings()
        return embeddings.weight[torch.tensor(token_ids)].float().cpu().clone()
    from safetensors import safe_open

    for file in _weight_files(source):
        with safe_open(file, framework="pt") as tensors:
            if "lm_head.weight" in tensors.keys():  # noqa: SIM118 - not a mapping
                rows = tensors.get_slice("lm_head.weight")
                return torch.stack([rows[i] for i in token_ids]).float()  # (K, D)
    raise ModelError(
        f"{source.name} has no lm_head.weight to start the label rows from; use head.prior=zero."
    )


def _weight_files(source: Source) -> Iterator[Path]:
    if source.local:
        yield from sorted(Path(source.path).glob("*.safetensors"))
        return
    from transformers.utils.hub import cached_file

    find: Callable[..., str | None] = cached_file
    index = find(
        source.path,
        "model.safetensors.index.json",
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    name = "model.safetensors"
    if index:
        name = json.loads(Path(index).read_text())["weight_map"].get("lm_head.weight", "")
    file = name and find(
        source.path, name, revision=source.revision, _raise_exceptions_for_missing_entries=False
    )
    if file:
        yield Path(file)
