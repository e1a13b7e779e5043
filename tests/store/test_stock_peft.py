"""Stock PEFT finds a legal adapter: the mean classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
)
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

TEXTS = ["find my parcel", "how can you refund this charge again please", "login"]


@pytest.mark.parametrize("kind", ["diagonal", "dense", "point", "refreshed point"])
def test_it_loads_the_mean_classifier(saved_kind, kind) -> None:
    model, out = saved_kind(kind)
    folder = out / "model"
    stock = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = model.head(model.features(TEXTS))
        for text, row in zip(TEXTS, expected, strict=True):
            inputs = tokenizer(f"{text}\nLabel:", return_tensors="pt")
            logits = stock(input_ids=inputs["input_ids"]).logits[0]
            torch.testing.assert_close(logits, row, rtol=1e-5, atol=1e-5)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize(("kind", "prefix"), [("diagonal", "polar_"), ("point", "lora_")])
def test_its_file_holds_the_adapter_and_the_mean_and_nothing_else(saved_kind, kind, prefix) -> None:
    model, out = saved_kind(kind)
    with safe_open(out / "model" / "adapter_model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        assert tensors.metadata() == {"format": "pt"}
        (score,) = (name for name in names if "score" in name)
        assert torch.equal(tensors.get_tensor(score), model.head.weight)
    assert score == "base_model.model.score.weight"
    assert all(prefix in name for name in names - {score})
    parts = 3 if prefix == "polar_" else 2
    assert len(names) - 1 == 2 * 2 * parts  # query and value of two layers


def test_its_configuration_is_peft_s_own(saved_kind, llama_base) -> None:
    folder = saved_kind("diagonal")[1] / "model"
    config = PeftConfig.from_pretrained(folder)
    assert type(config).__name__ == "PolarConfig"
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["peft_type"] == "POLAR" and written["task_type"] == "SEQ_CLS"
    assert written["base_model_name_or_path"] == str(llama_base)


@pytest.mark.parametrize("kind", ["generative", "ordinal"])
def test_heads_that_no_linear_score_stands_for_are_no_classifier_to_it(saved_kind, kind) -> None:
    model, out = saved_kind(kind)
    folder = out / "model"
    with pytest.raises(ValueError, match="Expected target PEFT class: PeftModelForFeature"):
        AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=4)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        assert not [name for name in tensors.keys() if "score" in name]  # noqa: SIM118
    stock = AutoPeftModelForFeatureExtraction.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        inputs = tokenizer(f"{TEXTS[0]}\nLabel:", return_tensors="pt")
        hidden = stock(input_ids=inputs["input_ids"]).last_hidden_state[0, -1]
    torch.testing.assert_close(hidden, model.features(TEXTS[:1])[0], rtol=1e-5, atol=1e-5)


def test_an_encoder_is_a_feature_extractor_to_it(saved_kind, bert_base) -> None:
    model, out = saved_kind("encoder")
    folder: Path = out / "model"
    stock = PeftModel.from_pretrained(AutoModel.from_pretrained(bert_base), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("find my parcel", "login again", return_tensors="pt")
    with torch.no_grad():
        hidden = stock(**inputs).last_hidden_state[0].mean(0)
    expected = model.features([("find my parcel", "login again")])[0]
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
