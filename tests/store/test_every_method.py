"""The folder of a model of every method: complete here, and its mean in stock PEFT's hands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftConfig
from safetensors import safe_open

from bayestune import methods
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.store import load
from bayestune.training import fit

TEXTS = ["find my parcel", "how can you refund this charge again please", "login"]
#: What keeps the training of a few methods short.
OPTIONS: dict[str, dict[str, Any]] = {
    "ensemble": {"weights": {"members": 2}},
    "mc_dropout": {"dropout": 0.1},
}


@pytest.fixture(scope="module", params=list(methods.METHODS))
def saved(request, make, clear, tmp_path_factory) -> tuple[BayesModel, Path]:
    model = make(request.param, epochs=1, **OPTIONS.get(request.param, {}))
    out = tmp_path_factory.mktemp(request.param) / "run"
    fit(model, clear.select(range(48)), out=out, progress=silent)
    return model, out / "model"


def test_stock_peft_loads_the_mean(saved) -> None:
    model, folder = saved
    stock = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    tensors = model.reader().tensors(model.encode(model.read(TEXTS)), range(3))
    with torch.no_grad():
        logits = stock(**{k: tensors[k] for k in ("input_ids", "attention_mask")}).logits
        expected = model.head(model.features(TEXTS))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.05
    head = dict(stock.named_parameters())["base_model.model.score.modules_to_save.default.weight"]
    assert torch.equal(head, model.head.weight)


def test_its_file_holds_nothing_that_peft_does_not_know(saved) -> None:
    model, folder = saved
    kind = model.recipe.adapter.kind
    config = PeftConfig.from_pretrained(folder)
    types = {"polar": "POLAR", "lora": "LORA", "contextual": "CONTEXTUAL_LORA"}
    assert config.peft_type == types[kind]
    known = {
        "polar": ("polar_X", "polar_theta", "polar_Y"),
        "lora": ("lora_A.weight", "lora_B.weight"),
        "contextual": ("lora_A.weight", "lora_B.weight", *_context()),
    }[kind]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    (score,) = (name for name in names if not name.endswith(known))
    assert score == "base_model.model.score.weight"
    assert len(names) - 1 == 2 * 2 * len(known)  # query and value of two layers


def _context() -> list[str]:
    layers = [f"lora_A.context.{layer}" for layer in ("first", "matrix")]
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def test_here_it_is_the_whole_posterior(saved) -> None:
    model, folder = saved
    again = load(folder)
    assert torch.equal(again.predict(TEXTS).probs, model.predict(TEXTS).probs)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "AutoPeftModelForSequenceClassification.from_pretrained" in card
    manifest = json.loads((folder / "bayestune.json").read_text(encoding="utf-8"))
    assert manifest["method"] == model.method.name
