"""Contextual LoRA in PEFT: its function, where it starts, and that nobody takes it for LoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract import PeftContract
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_tiny import tiny

from bayestune.errors import ConfigError, ModelError
from bayestune.peft import ContextualLoraConfig, export_lora
from bayestune.weights import sites

IDS = torch.tensor([[5, 9, 17, 3], [8, 8, 21, 40]])
OPTIONS = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS"}


class TestContextual(PeftContract):
    def make_config(self, **settings: Any) -> PeftConfig:
        return ContextualLoraConfig(**{"r": 4, "lora_alpha": 6, "hidden": 8, **settings})

    def disturb(self, layer: Any, adapter: str, generator: torch.Generator) -> None:
        context = layer.lora_A[adapter].context
        for weight in (layer.lora_B[adapter].weight, context.matrix.weight):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))


def adapted(config: type = ContextualLoraConfig, *, move: bool = True, **options) -> PeftModel:
    """A random classifier with an adapter whose A and B are random, and its context too."""
    torch.manual_seed(3)
    model = get_peft_model(tiny(), config(**{**OPTIONS, **options}))
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or (move and "context" in name):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_it_starts_as_plain_lora() -> None:
    model, plain = adapted(move=False), adapted(LoraConfig)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(own[name])
    torch.testing.assert_close(logits(model), logits(plain))
    assert (logits(adapted()) - logits(plain)).abs().max() > 1e-2


def test_a_layer_computes_the_stated_function() -> None:
    layer = adapted().base_model.model.model.layers[1].self_attn.q_proj
    context = layer.lora_A["default"].context
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer(x)
    for i in range(3):
        for t in range(5):
            u = A @ x[i, t]
            h = torch.relu(context.first.weight @ u + context.first.bias)
            E = (context.matrix.weight @ h + context.matrix.bias).view(4, 4)
            expected[i, t] += 8 / 4 * (B @ (E @ u))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_only_the_adapter_is_trained_and_all_of_it_is() -> None:
    model = adapted()
    model(input_ids=IDS).logits.square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "score" not in n}
    assert all("lora_" in name for name in trained)
    assert sum("context" in name for name in trained) == 2 * 2 * 4
    moved = [n for n, p in model.named_parameters() if n in trained and not p.grad.abs().sum()]
    assert not moved


def test_saved_and_loaded_by_peft_it_is_the_same_function(tmp_path) -> None:
    model = adapted(hidden=16)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(), str(tmp_path), adapter_name="other").eval()
    assert torch.equal(logits(again), logits(model))
    config = again.peft_config["other"]
    assert type(config) is ContextualLoraConfig and config.hidden == 16
    assert not [n for n, p in again.named_parameters() if p.requires_grad]


def test_peft_alone_refuses_it(tmp_path, monkeypatch) -> None:
    """Without this package PEFT does not know the type, and says so instead of loading A and B."""
    adapted().save_pretrained(tmp_path)
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, "CONTEXTUAL_LORA")
    with pytest.raises(KeyError, match="CONTEXTUAL_LORA"):
        PeftModel.from_pretrained(tiny(), str(tmp_path))


@pytest.mark.parametrize(
    "merge",
    [
        lambda m: m.merge_and_unload(),
        lambda m: m.merge_adapter(),
        lambda m: m.base_model.model.model.layers[0].self_attn.q_proj.merge(),
        lambda m: m.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default"),
        lambda m: m.base_model.add_weighted_adapter(["default"], [1.0], "sum"),
    ],
)
def test_there_is_nothing_to_merge(merge) -> None:
    model = adapted()
    before = logits(model)
    with pytest.raises(ModelError, match="there is no ΔW to merge, export or combine"):
        merge(model)
    assert torch.equal(logits(model), before)


def test_there_is_no_lora_to_export(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"CONTEXTUAL_LORA.*no plain LoRA computes what another"):
        export_lora(adapted(), tmp_path)


def test_it_can_be_switched_off_and_taken_out() -> None:
    model = adapted()
    with model.disable_adapter():
        off = logits(model)
    assert not torch.allclose(off, logits(model))
    assert torch.equal(off, logits(copy.deepcopy(model).unload()))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"target_modules": ["embed_tokens"]}])
def test_what_is_not_a_plain_linear_map_is_refused(options) -> None:
    with pytest.raises(ModelError, match="takes linear layers, and none of LoRA's variants"):
        adapted(**options)


def test_a_network_has_units() -> None:
    with pytest.raises(ConfigError, match="hidden must be"):
        ContextualLoraConfig(hidden=0, **OPTIONS)


def test_it_offers_its_context_and_not_its_a() -> None:
    model = adapted()
    found = sites(model, "context")
    assert len(found) == 4 and all(name.endswith("_proj.context") for name in found)
    with pytest.raises(ModelError, match="no factor A to put"):
        sites(model, "A")
    with pytest.raises(ModelError, match="no factor context"):
        sites(adapted(LoraConfig), "context")
