"""The last layer run for the pooled tokens alone: the same features and gradients, fewer rows."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import DECODERS, backbone, batch, config, texts
from torch import Tensor, nn
from torch.testing import assert_close

import bayestune.backbone.backbone as module
from bayestune.backbone import Backbone
from bayestune.backbone.tail import tokenwise


def inputs_of(model: Backbone, kind: str, side: str = "right") -> dict[str, Tensor]:
    return batch(texts(), side, config(kind).pad_token_id, model.decoder)


def gradients(model: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    features = model(**inputs)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (features * weights).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def rows_seen(model: Backbone, inputs: dict[str, Tensor]) -> set[int]:
    """Return how many tokens of a text reach the parts behind the last attention."""
    seen: set[int] = set()
    handles = [
        part.register_forward_hook(lambda _, args, out: seen.add(args[0].shape[1]))
        for part in tokenwise(model.layers[-1], random=False)
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", DECODERS)
def test_features_and_gradients_are_those_of_the_whole_layer(kind) -> None:
    model = backbone(kind)
    for side in ("right", "left"):
        inputs = inputs_of(model, kind, side)
        model._tail = None
        part, found = model(**inputs).detach(), gradients(model, inputs)
        model._tail = False
        assert_close(part, model(**inputs).detach(), rtol=1e-5, atol=1e-6)
        whole = gradients(model, inputs)
        assert whole.keys() == found.keys() and whole
        for name in whole:
            assert_close(found[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "mistral"])
def test_one_token_of_a_text_is_run(kind) -> None:
    model = backbone(kind)
    inputs = inputs_of(model, kind)
    model(**inputs)
    assert model._tail is True
    assert rows_seen(model, inputs) == {1}


def test_the_mean_of_all_tokens_needs_all_of_them() -> None:
    model = backbone("llama", pooling="mean")
    inputs = inputs_of(model, "llama")
    model(**inputs)
    assert model._tail is False
    assert rows_seen(model, inputs) == {inputs["input_ids"].shape[1]}


class Mixing(nn.Module):
    """Lets tokens read one another where other layers have an MLP."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.cumsum(1)


def test_a_layer_whose_tokens_are_mixed_behind_its_attention_is_run_as_a_whole() -> None:
    model = backbone("llama")
    model.layers[-1].mlp = Mixing()
    inputs = inputs_of(model, "llama")
    found = model(**inputs)
    assert model._tail is False
    with torch.no_grad():
        output = model.transformer(**inputs).last_hidden_state
    assert_close(found.detach(), model.pool(output, inputs["attention_mask"]))


@pytest.mark.parametrize("targets", ["down_proj", "o_proj"])
def test_what_holds_random_weights_is_run_for_all_tokens(make, clear, targets) -> None:
    """The noise of dropout is that of a token and its position."""
    whole = {"down_proj": "mlp", "o_proj": "self_attn.o_proj"}[targets]
    model = make("mc_dropout", targets=targets, dropout=0.2)
    cut = model.backbone._tokenwise()
    last = dict(model.backbone.layers[-1].named_modules())
    assert len(cut) == 1 and last[whole] not in cut
    assert torch.isfinite(model.predict(clear.select(range(8))).probs).all()
    point = make("mle", targets=targets)
    assert len(point.backbone._tokenwise()) == 2


@pytest.mark.parametrize("short", [128, 0])
def test_training_in_half_precision_gives_the_gradients_of_full_precision(
    monkeypatch, short
) -> None:
    monkeypatch.setattr(module, "_SHORT", short)
    exact = backbone("llama")
    half = backbone("llama", dtype=torch.bfloat16)
    inputs = inputs_of(exact, "llama")
    whole, found = gradients(exact, inputs), gradients(half, inputs)
    for name in whole:
        gap = (found[name].float() - whole[name]).norm() / whole[name].norm().clamp_min(1e-6)
        assert gap < 0.2
