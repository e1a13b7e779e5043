"""Random transformers of four layers, one for each way of building them, and inputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from bayestune.backbone import Backbone, Base, adapt
from bayestune.config import AdapterConfig, HeadConfig
from bayestune.data import Encoded, pad
from bayestune.head import LinearHead

WIDTH = 32
VOCABULARY = 64
CLASSES = 3

_PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_NARROW = {**_GROUPED, "head_dim": 8}
_MIXED = {
    **_NARROW,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_ROBERTA = {**_PLAIN, "pad_token_id": 1, "max_position_embeddings": 64}

#: Configuration class and arguments by name; windows are shorter than the texts.
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": (
        "Qwen2Config",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", _NARROW),
    "gemma2": ("Gemma2Config", {**_MIXED, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**_MIXED, "query_pre_attn_scalar": 8}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 4}),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 8}),
    "opt": ("OPTConfig", {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "bloom": ("BloomConfig", {**_PLAIN, "n_layer": 4, "n_head": 4}),
    "gpt_neo": (  # positions are learnt, not rotary
        "GPTNeoConfig",
        {
            **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48},
            **{"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
            **{"window_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            **{"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0},
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _PLAIN),
    "bert": ("BertConfig", _PLAIN),
    "roberta": ("RobertaConfig", _ROBERTA),
    "electra": ("ElectraConfig", {**_PLAIN, "embedding_size": 16}),
    "distilbert": (
        "DistilBertConfig",
        {
            **{"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": 48},
            **{"n_layers": 4, "n_heads": 4, "pad_token_id": 0},
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        {
            **_PLAIN,
            **{"local_attention": 4, "global_attn_every_n_layers": 2},
            **{"cls_token_id": 1, "sep_token_id": 2},
        },
    ),
    # These two cannot be split: tuples between layers, four states per token.
    "deberta": (
        "DebertaV2Config",
        {**_PLAIN, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_MIXED,
            **{"num_kv_shared_layers": 1, "vocab_size_per_layer_input": VOCABULARY},
            **{"hidden_size_per_layer_input": 8, "laurel_rank": 4},
            "activation_sparsity_pattern": None,
        },
    ),
}
ENCODERS = ("bert", "roberta", "electra", "distilbert", "modernbert", "deberta")
UNSPLIT = ("deberta", "gemma3n")
SPLIT = tuple(name for name in ZOO if name not in UNSPLIT)
DECODERS = tuple(name for name in SPLIT if name not in ENCODERS)


def config(kind: str, **changes: Any) -> Any:
    """The configuration of a member of the zoo."""
    name, arguments = ZOO[kind]
    made = getattr(transformers, name)(**{**arguments, **changes})
    made.initializer_range = 0.2
    made.num_labels = CLASSES
    return made


def base(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Base:
    """A frozen random transformer as `load_base` gives it, without files."""
    made = config(kind, **changes)
    decoder = kind not in ENCODERS
    classifier = decoder and kind != "gemma3n"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = (AutoModelForSequenceClassification if classifier else AutoModel).from_config(
            made
        )
    model = model.to(dtype).eval().requires_grad_(False)
    transformer = getattr(model, model.base_model_prefix) if classifier else model
    return Base(model, transformer, decoder, model.score.in_features if classifier else WIDTH)


def backbone(
    kind: str, layers: str = "top:2", pooling: str = "auto", moved: bool = True, **options: Any
) -> Backbone:
    """An adapted random transformer whose adapter takes part, unless it is to stay at its start."""
    adapter = {"rank": 2, "targets": "all-linear", **options.pop("adapter", {})}
    plain = base(kind, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, _ = adapt(
            plain,
            LinearHead(in_features=plain.width, num_classes=CLASSES),
            AdapterConfig(layers=layers, **adapter),
            HeadConfig(pooling=pooling),  # pyright: ignore[reportArgumentType]
        )
    if moved:
        move(made)
    return made


@torch.no_grad()
def move(model: nn.Module, seed: int = 3) -> None:
    """Give the adapter values as training would."""
    generator = torch.Generator().manual_seed(seed)
    parts = [p for n, p in model.named_parameters() if "polar_theta" in n or "lora_B" in n]
    assert parts
    for part in parts:
        part.copy_(0.2 * torch.randn(part.shape, generator=generator))


def texts(lengths: Sequence[int] = (9, 5, 12, 1, 7), seed: int = 1) -> list[list[int]]:
    """Token ids of random texts, without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def encoded(ids: list[list[int]], types: list[list[int]] | None = None) -> Encoded:
    return Encoded(ids, types, 0)


def batch(
    ids: list[list[int]], side: str = "right", pad_id: int = 0, decoder: bool = True
) -> dict[str, Tensor]:
    """Padded inputs of a backbone."""
    input_ids, mask, positions = pad(ids, pad_id, side)
    made = {"input_ids": input_ids, "attention_mask": mask}
    return {**made, "position_ids": positions} if decoder else made


def one_by_one(model: Backbone, ids: list[list[int]]) -> Tensor:
    """Features of texts that are never padded, ``(N, D)``."""
    rows = [model(**batch([text], decoder=model.decoder)) for text in ids]
    return torch.cat(rows)
