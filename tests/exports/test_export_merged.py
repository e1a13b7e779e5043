"""Whole models that transformers loads by itself."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backbone_zoo import DECODERS, ZOO, backbone, one_by_one, texts
from export_checks import TEXTS, described, mean_logits, prompts, python_of, stock_logits
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from bayestune.backbone.pool import POOLING
from bayestune.errors import ModelError
from bayestune.exports import export
from bayestune.exports.merge import merged_weights, shell, write_model
from bayestune.exports.plain import Plain
from bayestune.peft import lora_factors
from bayestune.store import open_sidecar

#: Of the largest logit: rounding of the merged weights.
CLOSE = {"polar_vbll": 1e-5, "trained": 1e-5, "mle": 1e-5, "tied": 1e-5, "bfloat16": 2e-2}


@pytest.mark.parametrize("name", list(CLOSE))
def test_transformers_computes_the_mean(kind, name, tmp_path) -> None:
    model = kind(name)
    folder = export(model, to="merged", out=tmp_path / "out")
    names: dict[str, Any] = {}
    exec(python_of(folder), names)
    found = stock_logits(names["model"], names["tokenizer"], prompts(model))
    wanted = mean_logits(model)
    assert (found - wanted).abs().max() <= CLOSE[name] * wanted.abs().max()
    assert names["model"].config.id2label == dict(enumerate(model.labels))
    assert names["model"].dtype == model.backbone.dtype
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]


@pytest.mark.parametrize("kind_of_model", ["model", "folder"])
def test_the_model_stays_as_it_is_bit_by_bit(kind, run, tmp_path, kind_of_model) -> None:
    model = kind("bfloat16")
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    config = copy.deepcopy(model.backbone.transformer.config.to_dict())
    export(model, to="merged", out=tmp_path / "out")
    after = model.backbone.state_dict()
    assert not [k for k, v in before.items() if not torch.allclose(after[k], v, 0, 0, True)]
    assert model.backbone.transformer.config.to_dict() == config
    if kind_of_model == "folder":  # merged in place, and the same
        model = kind("polar_vbll")
        one, two = (export(s, to="merged", out=tmp_path / n) for s, n in ((model, "a"), (run, "b")))
        assert (
            described(one)["files"]["model.safetensors"]
            == (described(two)["files"]["model.safetensors"])
        )


def test_shards_have_their_index(kind, tmp_path) -> None:
    model = kind("polar_vbll")
    folder = export(model, to="merged", out=tmp_path / "out", shard_size="40KB", check=True)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3 and all((folder / name).stat().st_size < 60_000 for name in files)
    assert files <= set(described(folder)["files"])


def test_a_number_is_what_the_card_says(kind, tmp_path) -> None:
    model = kind("number")
    folder = export(model, to="merged", out=tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.config.num_labels == 1 and stock.config.problem_type == "regression"
    logits = stock_logits(stock, AutoTokenizer.from_pretrained(folder), prompts(model))
    found = model.scaling.mean + model.scaling.std * logits.flatten().double()
    torch.testing.assert_close(found, model.predict(TEXTS).mean, rtol=1e-4, atol=1e-4)
    assert f"{model.scaling.mean!r} + {model.scaling.std!r}" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["encoder", "pooled", "ordinal", "generative"])
def test_other_heads_stand_beside_the_bare_transformer(kind, name, tmp_path) -> None:
    model = kind(name)
    folder = export(model, to="merged", out=tmp_path / "out", check=True)
    assert any("a classifier that transformers loads" in x for x in described(folder)["left_out"])
    stock, pooling = AutoModel.from_pretrained(folder), model.backbone.pooling
    given = [("find my parcel", "login")] if name == "encoder" else TEXTS[:1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        *(given[0] if name == "encoder" else prompts(model)[:1]), return_tensors="pt"
    )
    with torch.no_grad():
        hidden = stock.eval()(**inputs).last_hidden_state
    phi = POOLING[pooling](hidden, inputs["attention_mask"]).float()
    found, wanted = open_sidecar(folder).predict(phi), model.predict(given)
    torch.testing.assert_close(found.probs, wanted.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.ood_score, wanted.ood_score, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_tokenizer_and_classifier_agree_on_the_padding(kind, pad, tmp_path) -> None:
    model = copy.copy(kind("polar_vbll"))
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.pad_token = pad
    folder = export(model, to="merged", out=tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == stock.config.pad_token_id is not None
    found = stock_logits(stock, tokenizer, prompts(model))
    torch.testing.assert_close(found, mean_logits(model), rtol=1e-4, atol=1e-5)
    assert model.tokenizer.pad_token == pad
    assert pad is None or tokenizer.pad_token == pad


def test_what_cannot_be_added_to_is_refused(kind, tmp_path) -> None:
    model = kind("trained")
    config = model.backbone.transformer.config
    config.quantization_config = {"quant_method": "bitsandbytes"}
    try:
        with pytest.raises(ModelError, match=r"is quantised: .* Export --to lora"):
            export(model, to="merged", out=tmp_path / "out")
    finally:
        del config.quantization_config
    path, layer = next(
        (n, m) for n, m in model.backbone.transformer.named_modules() if hasattr(m, "base_layer")
    )
    weight = layer.base_layer.weight
    layer.base_layer.weight = torch.nn.Parameter(weight.detach().to(torch.int8), False)
    try:
        with pytest.raises(ModelError, match=rf"base layer {path} holds torch.int8"):
            export(model, to="merged", out=tmp_path / "out")
    finally:
        layer.base_layer.weight = weight
    model.backbone.peft_model.merge_adapter()
    try:
        with pytest.raises(ModelError, match=r"merged into the base .* unmerge it first"):
            export(model, to="gguf-ready", out=tmp_path / "out")
    finally:
        model.backbone.peft_model.unmerge_adapter()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_way_of_building_transformers_comes_back(name, tmp_path) -> None:
    made = backbone(name)
    model: Any = SimpleNamespace(backbone=made)
    values = Plain(lora_factors(made.transformer), None, None)  # type: ignore[arg-type]
    auto, prefix, rows = AutoModel, "", {}
    if name in DECODERS:
        auto, prefix = AutoModelForCausalLM, f"{made.transformer.base_model_prefix}."
    whole = shell(model, auto)
    ids = texts((7, 4))
    wanted = one_by_one(made, ids)
    with merged_weights(model, values, keep=True) as weights:
        state: dict[str, Any] = {f"{prefix}{key}": value for key, value in weights.items()}
        tied = whole.all_tied_weights_keys or {}
        rows = {k: v for k, v in whole.state_dict().items() if k not in state and k not in tied}
        state |= {k: torch.zeros(v.shape) for k, v in rows.items()}
        write_model(whole, state, tmp_path, None)
    assert torch.equal(one_by_one(made, ids), wanted)  # the base is back
    stock = AutoModel.from_pretrained(tmp_path).eval()
    for text, row in zip(ids, wanted, strict=True):
        tokens = torch.tensor([text])
        with torch.no_grad():
            out = stock(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        phi = POOLING[made.pooling](out.last_hidden_state, torch.ones_like(tokens))
        torch.testing.assert_close(phi[0], row, rtol=1e-4, atol=1e-5)
