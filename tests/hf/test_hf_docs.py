"""The page about the Trainer does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import bayestune as bt

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hf_trainer.md"


def test_three_lines_change_and_the_rest_of_the_page_runs(
    llama_base, encode, tokenizer, topics_task, tmp_path, monkeypatch
):
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, TrainingArguments

    page = PAGE.read_text(encoding="utf-8")
    diff = re.search(r"```diff\n(.*?)```", page, re.DOTALL).group(1).splitlines()
    assert len([line for line in diff if re.search(r"# [123]\b", line)]) == 3
    monkeypatch.chdir(tmp_path)
    names = {
        "bt": bt,
        "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
        "get_peft_model": get_peft_model,
        "path": llama_base,
        "tokenizer": tokenizer,
        "train": encode(48),
        "val": encode(30, 100),
        "args": TrainingArguments(
            output_dir="out",
            max_steps=3,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
        ),
    }
    exec("\n".join(line[1:] for line in diff if not line.startswith("-")), names)
    names["trainer"].train()
    names["trainer"].save_model("out/adapter")
    names |= {"train": topics_task(48), "val": topics_task(30, 100)}
    names["labels"] = names["train"].labels
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert bt.load("out/model").density is not None
