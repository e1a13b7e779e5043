"""Writes the golden run of this format: ``python tests/store/golden/write.py``, once a format.

A backbone and a calibrated run of a few kilobytes, as this version writes them, and what it says of
two texts. What lies there already is never written again: it is what earlier versions wrote.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bayestune as bt
from bayestune.store.manifest import FORMAT

HERE = Path(__file__).parent
TEXTS = ["my parcel is late", "a refund please"]
WORDS = "<pad> <s> </s> <unk> my your parcel refund login is was late please a the not Label : \n"


def base(folder: Path) -> Path:
    """Write a decoder of 8 features and one word per token."""
    vocabulary = {word: i for i, word in enumerate([*WORDS.split(" "), "again", "yet", "no"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)  # pyright: ignore
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Write what is not there."""
    out = HERE / f"format-{FORMAT}"
    if out.exists():
        raise SystemExit(f"{out} is there: an earlier version wrote it, and it stays as it is.")
    if not (HERE / "base").exists():
        base(HERE / "base")
    rows = [
        {"text": f"{a} {topic} {b}", "label": topic}
        for a in ("my", "your", "a", "the")
        for topic in ("parcel", "refund", "login")
        for b in ("is late", "not yet", "please", "again")
    ]
    train, fresh = bt.Task.from_rows(rows[::2]), rows[1::2]
    options = {"rank": 1, "layers": "all", "kl": 1.0, "head_lr": 5e-2, "epochs": 3}
    model = bt.build("polar_vbll", base=str(HERE / "base"), labels=train, **options)
    with tempfile.TemporaryDirectory() as place:
        bt.fit(model, train, out=Path(place) / "run")
    unseen = bt.Task.from_rows(fresh, like=train)
    bt.calibrate(model, unseen, coverage=0.8)
    # No path of the machine that wrote it.
    model.recipe = replace(model.recipe, model="golden/base")
    model.source = replace(model.source, name="golden/base")
    model.backbone.peft_model.peft_config["default"].base_model_name_or_path = "golden/base"
    model.save(out)
    found = list(model.predict(TEXTS).rows([1, 2]))
    (HERE / f"format-{FORMAT}.json").write_text(
        json.dumps({"texts": TEXTS, "rows": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
