"""What the card of a saved model shows can be run."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from bayestune.store.card import card

#: Their folders are feature extractors to stock PEFT.
FEATURES = ["encoder", "generative", "ordinal"]


@pytest.mark.parametrize("kind", ["diagonal", "point", "choice", *FEATURES])
def test_its_code_loads_the_model_here_and_by_stock_peft(saved_kind, kind) -> None:
    model, out = saved_kind(kind)
    text = (out / "model" / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": model.source.name,
        "library_name": "peft",
        "tags": ["bayestune", model.method.name],
    }
    here, stock = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    if kind == "encoder":  # reads pairs
        here = here.replace('["…"]', '[("…", "…")]')
    names: dict[str, object] = {}
    exec(here.replace("PATH", str(out / "model")), names)
    assert len(names["pred"].labels) == 1  # pyright: ignore
    exec(stock.replace("PATH", str(out / "model")), names)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    with torch.no_grad():
        output = names["model"].eval()(**tokenizer("a b", return_tensors="pt"))  # pyright: ignore
    if kind in FEATURES:
        assert output.last_hidden_state.shape[-1] == model.head.in_features
    else:
        assert output.logits.shape == (1, len(model.labels))


def test_many_classes_are_counted_and_not_listed(make) -> None:
    text = card(make(labels=[f"class {i}" for i in range(20)]))
    assert '"class 11" and 8 more.' in text and "class 12" not in text
