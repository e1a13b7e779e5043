"""Random transformers of a few thousand parameters, and small questions about their adapters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

LABELS = 3
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}
LINEAR = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "bert": {"query", "key", "value", "dense"},
}


def tiny(
    kind: str = "llama",
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    seed: int = 0,
    width: int = 32,
):
    """A random classifier with 3 labels in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _BUILD[kind](layers, width)
    return model.to(dtype).eval()


def _llama(layers: int, width: int) -> PreTrainedModel:
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=128,
            hidden_size=width,
            intermediate_size=width * 3 // 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            num_labels=LABELS,
            initializer_range=0.2,
        )
    )


def _bert(layers: int, width: int) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=128,
            hidden_size=width,
            intermediate_size=width * 3 // 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            pad_token_id=0,
            num_labels=LABELS,
            initializer_range=0.2,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
        )
    )


_BUILD = {"llama": _llama, "bert": _bert}


def inputs(rows: int = 3, length: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(1, 128, (rows, length), generator=generator)}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Logits of the fixed inputs ``(3, 3)`` in evaluation mode."""
    return model.eval()(**inputs()).logits


def adapted(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Every adapted layer with its path in the base model."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name.removeprefix("base_model.model."), module


def exactly(actual: Tensor, expected: Tensor) -> None:
    """Equality to the last bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def weight_key(model: nn.Module) -> str:
    """Key of the first adapted layer's base weight in the state dict of a PEFT model."""
    name, _ = next(adapted(model))
    return f"base_model.model.{name}.base_layer.weight"
