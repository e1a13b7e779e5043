"""The Stiefel update's share of a training step at the shapes of a 7B model, on a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bench.speed.measure import Row
from bench.speed.step import compared

from bayestune.backbone import load_tokenizer, resolve

#: Llama 2 7B, with random weights.
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def run(device: str, base: str, repeats: int, shape: dict[str, int] = SHAPE) -> list[Row]:
    """Measure with every linear layer adapted at rank 16; the tokeniser is that of ``base``."""
    with tempfile.TemporaryDirectory() as place:
        random_base(Path(place), base, shape)
        rows = compared("all", device, place, repeats, rank=16, targets="all-linear")
    target = {"×": "≤ 1.05", "": "≤ 0.02"}
    return [
        Row(
            f"7B, all linear layers, r = 16: {r.what}",
            r.value,
            r.unit,
            target[r.unit],
            r.limit,
            r.detail,
        )
        for r in rows
    ]


def random_base(folder: Path, tokens_of: str, shape: dict[str, int]) -> None:
    """Write a Llama of random weights in bfloat16 with another backbone's tokeniser."""
    from transformers import LlamaConfig, LlamaModel

    tokenizer = load_tokenizer(resolve(tokens_of))
    config = LlamaConfig(vocab_size=len(tokenizer), dtype=torch.bfloat16, **shape)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaModel(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
