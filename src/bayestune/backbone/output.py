"""The pretrained LM head, from which answer letters start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayestune.backbone.assemble import Base
from bayestune.backbone.files import weight_files
from bayestune.backbone.source import Source
from bayestune.errors import ModelError

_HEAD = "lm_head.weight"


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

    for file in weight_files(source, _HEAD):
        with safe_open(file, framework="pt") as tensors:
            if _HEAD in tensors.keys():  # noqa: SIM118 - not a mapping
                rows = tensors.get_slice(_HEAD)
                return torch.stack([rows[i] for i in token_ids]).float()  # (K, D)
    raise ModelError(
        f"{source.name} has no {_HEAD} to start the label rows from; use head.prior=zero."
    )
