"""One pass in two halves: the same features and gradients, or a refusal."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import SPLIT, UNSPLIT, backbone, batch, config, texts
from torch.testing import assert_close

from bayestune.backbone import Backbone
from bayestune.errors import ModelError


def inputs_of(model: Backbone, kind: str, side: str = "right") -> dict[str, torch.Tensor]:
    return batch(texts(), side, config(kind).pad_token_id, model.decoder)


def rest(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name != "input_ids"}


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("kind", SPLIT)
def test_two_halves_are_the_whole(kind, first):
    model = backbone(kind, layers=f"top:{4 - first}")
    assert model.first_layer == first and model.splits
    for side in ("right", "left") if model.decoder else ("right",):
        inputs = inputs_of(model, kind, side)
        with torch.no_grad():
            states = model.enter(**inputs)
            halves = model.resume(states, **rest(inputs))
            assert_close(halves, model(**inputs), rtol=1e-6, atol=1e-6)
        assert states.shape == (*inputs["input_ids"].shape, 32)
        model.check_split(inputs)


@pytest.mark.parametrize("kind", SPLIT)
def test_gradients_are_those_of_the_whole_pass(kind):
    model = backbone(kind)
    inputs = inputs_of(model, kind)

    def gradients(features: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
        (features * weights).sum().backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    whole = gradients(model(**inputs))
    halves = gradients(model.resume(model.enter(**inputs), **rest(inputs)))
    assert whole.keys() == halves.keys() and whole
    for name in whole:
        assert_close(halves[name], whole[name], rtol=1e-5, atol=1e-6)


def test_what_fills_up_the_states_does_not_matter():
    model = backbone("llama")
    inputs = inputs_of(model, "llama")
    with torch.no_grad():
        states = model.enter(**inputs)
        states[inputs["attention_mask"] == 0] = 7.0
        assert_close(model.resume(states, **rest(inputs)), model(**inputs), rtol=1e-5, atol=1e-6)


def test_states_are_those_that_enter_the_first_adapted_layer():
    model = backbone("gemma2")  # scales its embeddings by the root of its width
    inputs = inputs_of(model, "gemma2")
    with torch.no_grad():
        states = model.enter(**inputs)
        seen = model.transformer(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states, seen[2])
    assert not states.requires_grad


def test_states_do_not_depend_on_the_adapter():
    moved, start = backbone("llama"), backbone("llama", moved=False)
    inputs = inputs_of(moved, "llama")
    assert torch.equal(moved.enter(**inputs), start.enter(**inputs))


def test_a_half_leaves_the_model_as_it_was():
    model = backbone("bert")
    inputs = inputs_of(model, "bert")
    with torch.no_grad():
        whole = model(**inputs)
        states = model.enter(**inputs)
        with pytest.raises(RuntimeError):
            model.resume(states[:, :, :5], **rest(inputs))
        assert torch.equal(model(**inputs), whole)
        assert torch.equal(model.resume(states, **rest(inputs)), whole)
    assert not any("forward" in vars(layer) for layer in model.layers)
    assert not any(layer._forward_pre_hooks for layer in model.layers)


def test_there_is_nothing_to_split_below_the_lowest_layer():
    model = backbone("llama", layers="all")
    assert not model.splits
    inputs = inputs_of(model, "llama")
    with torch.no_grad():
        assert torch.equal(model.resume(model.enter(**inputs), **rest(inputs)), model(**inputs))


@pytest.mark.parametrize("kind", UNSPLIT)
def test_an_architecture_that_cannot_be_split_is_refused(kind):
    model = backbone(kind)
    inputs = inputs_of(model, kind)
    with torch.no_grad():
        whole = model(**inputs)
    with pytest.raises(ModelError, match=r"switch the prefix cache off with cache\.prefix=off"):
        model.check_split(inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs), whole)


def test_halves_that_differ_are_refused(monkeypatch):
    model = backbone("llama")
    inputs = inputs_of(model, "llama")
    enter = model.enter
    monkeypatch.setattr(model, "enter", lambda **batch: enter(**batch) * 1.01)
    with pytest.raises(ModelError, match=r"LlamaModel in two halves changes its features by .*e-"):
        model.check_split(inputs)
    monkeypatch.setattr(model, "enter", lambda **batch: enter(**batch) * float("nan"))
    with pytest.raises(ModelError, match="in two halves"):
        model.check_split(inputs)


def test_bf16_halves_are_the_whole():
    model = backbone("llama", dtype=torch.bfloat16)
    inputs = inputs_of(model, "llama")
    model.check_split(inputs)
    assert model.enter(**inputs).dtype == torch.bfloat16
