"""The pooled forward: what surrounds a text in its batch does not change its feature."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import DECODERS, ENCODERS, SPLIT, backbone, batch, config, move, one_by_one, texts
from torch.testing import assert_close

from bayestune.backbone import Backbone
from bayestune.errors import NumericsError

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def llama() -> Backbone:
    return backbone("llama")


@torch.no_grad()
def features(model: Backbone, ids: list[list[int]], size: int, side: str, pad_id: int = 0):
    rows = [
        model(**batch(ids[i : i + size], side, pad_id, model.decoder))
        for i in range(0, len(ids), size)
    ]
    return torch.cat(rows)


@pytest.mark.parametrize("kind", SPLIT)
def test_neither_batch_nor_padding_changes_a_feature(kind):
    model = backbone(kind)
    ids = texts((9, 5, 12, 1, 7, 3, 8, 8, 2, 11, 4, 6, 10, 5, 9, 13))
    with torch.no_grad():
        alone = one_by_one(model, ids)
    assert alone.std() > 0.1
    pad_id = config(kind).pad_token_id
    for side in ("right", "left") if kind in DECODERS else ("right",):
        for size in (5, 16):
            assert_close(features(model, ids, size, side, pad_id), alone, **CLOSE)


def test_the_padding_token_may_be_any_token(llama):
    ids = [[5, 2, 2], [2], [7, 2, 9, 2]]  # 2 ends texts and also fills up the batch
    with torch.no_grad():
        alone = one_by_one(llama, ids)
    for side in ("right", "left"):
        for pad_id in (0, 2, 7):
            assert_close(features(llama, ids, 3, side, pad_id), alone, **CLOSE)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_feature_is_the_pooled_last_hidden_state(kind, pooling):
    model = backbone(kind, pooling=pooling)
    ids = texts((6,))
    inputs = batch(ids, decoder=model.decoder)
    with torch.no_grad():
        states = model.transformer(input_ids=inputs["input_ids"]).last_hidden_state[0]  # (T, D)
        feature = model(**inputs)[0]
    expected = {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[pooling]
    assert_close(feature, expected, **CLOSE)


def test_positions_are_counted_by_the_mask_where_they_are_absent(llama):
    inputs = batch(texts(), "left")
    with torch.no_grad():
        given = llama(**inputs)
        del inputs["position_ids"]
        assert torch.equal(llama(**inputs), given)


def test_the_adapter_takes_part_and_starts_at_nothing():
    model = backbone("llama", moved=False)
    inputs = batch(texts())
    with torch.no_grad():
        start = model(**inputs)
        with model.peft_model.disable_adapter():
            assert torch.equal(model(**inputs), start)
        move(model)
        assert not torch.allclose(model(**inputs), start, atol=1e-2)
        with model.peft_model.disable_adapter():
            assert torch.equal(model(**inputs), start)


@pytest.mark.parametrize("adapter", [{"kind": "polar"}, {"kind": "lora"}])
def test_training_switches_the_adapters_dropout_and_nothing_else(adapter):
    dropped = {"adapter": {**adapter, "dropout": 0.5}}
    model = backbone("gpt_neox", attention_dropout=0.5, hidden_dropout=0.5, **dropped)
    inputs = batch(texts())
    with torch.no_grad():
        still = model(**inputs)
        assert torch.equal(model(**inputs), still)
        model.train()
        assert model.training
        torch.manual_seed(0)
        assert not torch.allclose(model(**inputs), still, atol=1e-3)
        with model.peft_model.disable_adapter():  # all dropout but the adapter's is still off
            bare = model(**inputs)
            assert torch.equal(model(**inputs), bare)
        model.eval()
        assert not model.training
        assert torch.equal(model(**inputs), still)
    on = [
        n
        for n, m in model.train().named_modules()
        if m.training and isinstance(m, torch.nn.Dropout)
    ]
    assert all("lora_dropout" in name for name in on)


def test_without_dropout_training_and_evaluation_agree(llama):
    inputs = batch(texts())
    with torch.no_grad():
        assert torch.equal(llama.train()(**inputs), llama.eval()(**inputs))


def test_gradients_reach_the_adapter_alone(llama):
    llama(**batch(texts()))[:, ::2].square().sum().backward()
    with_gradient = {n for n, p in llama.named_parameters() if p.grad is not None}
    llama.zero_grad()
    assert with_gradient
    assert all("polar" in name for name in with_gradient)
    assert all(f"layers.{i}." in " ".join(with_gradient) for i in (2, 3))
    assert not any(f"layers.{i}." in name for i in (0, 1) for name in with_gradient)


def test_every_weight_is_listed_once(llama):
    names = [name for name, _ in llama.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert len({id(p) for p in llama.parameters()}) == len(names)
    assert (llama.dtype, llama.device) == (torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["llama", ENCODERS[0]])
def test_a_bf16_backbone_gives_fp32_features(kind):
    model = backbone(kind, dtype=torch.bfloat16)
    ids = texts()
    with torch.no_grad():
        found = features(model, ids, 5, "right")
        exact = features(backbone(kind), ids, 5, "right")
    assert (model.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_features_that_are_no_numbers_name_their_rows(llama):
    broken, mask = torch.zeros(4, 32), torch.ones(4, 2, dtype=torch.long)
    llama.check_finite(broken, "rows 5 to 8", mask)
    broken[1, 3], broken[3, 0] = float("nan"), float("inf")
    with pytest.raises(
        NumericsError, match=r"rows 5 to 8 are NaN or infinite \(positions \[1, 3\]"
    ):
        llama.check_finite(broken, "rows 5 to 8", mask)
