"""Folders of tiny random transformers with their tokenizers, as ``base=`` takes them.

The decoder's embeddings are arranged so that the words of one topic point one way: its last token
then carries what the text is about, as that of a pretrained model does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from toy_tasks import FILLERS, FOREIGN, TOPICS
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from bayestune.model import BayesModel

WIDTH = 32
LAYERS = 4


def byte_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the toy tasks is one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [*(w for topic in TOPICS.values() for w in topic), *FILLERS, *FOREIGN]
    core.train_from_iterator([*words, "a\nLabel:", "a\nAnswer:", *"ABCD"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=256,
    )


def save_llama(folder: Path, *, tied: bool = False, seed: int = 0, layers: int = LAYERS) -> Path:
    """Write a causal language model of 32 features and its tokenizer."""
    tokenizer = byte_bpe()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=tied,
                initializer_range=0.25,
            )
        )
        _arrange(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _arrange(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.mul_(0.1)  # attention close to a mean over the tokens so far
        if "mlp" in name:
            parameter.mul_(0.3)
    embeddings = model.get_input_embeddings().weight
    for words in [*TOPICS.values(), FILLERS, *([word] for word in FOREIGN)]:
        direction = 0.35 * torch.randn(WIDTH)
        for word in words:
            (token,) = tokenizer(word)["input_ids"]
            embeddings[token] = direction + 0.05 * torch.randn(WIDTH)


def save_bert(folder: Path, *, seed: int = 0) -> Path:
    """Write an encoder of 32 features whose tokenizer marks the texts of a pair."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary += [*(w for topic in TOPICS.values() for w in topic), *FILLERS, *FOREIGN]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=WIDTH,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                pad_token_id=0,
                initializer_range=0.2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def move(model: BayesModel, seed: int = 3) -> BayesModel:
    """Give adapter and head values as training would, so that they take part in predictions."""
    generator = torch.Generator().manual_seed(seed)
    moved = 0
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad and ("polar_theta" in name or "lora_B" in name):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            moved += 1
    assert moved > 0
    model.head.weight.copy_(0.3 * torch.randn(model.head.weight.shape, generator=generator))
    return model
