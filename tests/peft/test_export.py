"""The exported LoRA computes the same function in stock PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    IA3Config,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from peft_tiny import TARGETS, adapted, exactly, logits, tiny
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bayestune.errors import ModelError
from bayestune.peft import ContextualLoraConfig, PolarConfig, export_lora

pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers for the old name of this property.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def trained(base: torch.nn.Module, kind: str = "llama", **settings) -> PeftModel:
    config = {"r": 4, "alpha": 6.0, "target_modules": TARGETS[kind], "task_type": "SEQ_CLS"}
    model = get_peft_model(base, PolarConfig(**{**config, **settings}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "polar_X" not in name and "polar_Y" not in name:
                parameter.normal_(generator=generator)
    return model


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_logits_are_those_of_stock_lora(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = trained(base, kind, modules_to_save=["norm"] if kind == "llama" else None)
    expected = logits(model)
    folder = export_lora(model, tmp_path / "new" / "lora")
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert config["task_type"] == "SEQ_CLS"
    for again in (
        AutoPeftModelForSequenceClassification.from_pretrained(folder),
        PeftModel.from_pretrained(tiny(kind), folder),
    ):
        assert isinstance(again.peft_config["default"], LoraConfig)
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(tiny(kind))).abs().max() > 0.1


def test_factors_are_exact_and_the_rest_is_kept(tmp_path: Path) -> None:
    model = trained(tiny(dtype=torch.float64))
    export_lora(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for name, layer in adapted(model):
        A, B = (saved.pop(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
        exactly(A, layer.polar_Y["default"].T)
        torch.testing.assert_close(B @ A, layer.get_delta_weight("default"), rtol=1e-14, atol=1e-14)
    assert list(saved) == ["base_model.model.score.weight"]
    exactly(saved.popitem()[1], model.base_model.model.score.modules_to_save["default"].weight)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"]])
def test_some_layers_under_another_name(targets: str | list[str], tmp_path: Path) -> None:
    model = trained(tiny())
    config = PolarConfig(r=3, target_modules=targets, layers_to_transform=[1], task_type="SEQ_CLS")
    model.add_adapter("second", config)
    model.set_adapter("second")
    generator = torch.Generator().manual_seed(5)
    for _, layer in adapted(model):
        if "second" in layer.polar_theta:
            layer.polar_theta["second"].data.normal_(generator=generator)
    expected = logits(model)
    export_lora(model, tmp_path, adapter_name="second")
    again = PeftModel.from_pretrained(tiny(), tmp_path)
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    names = {name for name, _ in adapted(again)}
    assert names == {name for name, layer in adapted(model) if "second" in layer.polar_theta}
    assert all(name.startswith("model.layers.1.") for name in names)


def test_a_merged_adapter_exports_the_same(tmp_path: Path) -> None:
    model = trained(tiny())
    export_lora(model, tmp_path / "a")
    model.merge_adapter()
    export_lora(model, tmp_path / "b")
    first, second = (load_file(tmp_path / x / "adapter_model.safetensors") for x in "ab")
    assert first.keys() == second.keys()
    for key, value in first.items():
        exactly(second[key], value)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 3},
        {"lora_alpha": 3, "use_rslora": True},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 7}},
        {"rank_pattern": {"v_proj": 6}, "use_rslora": True, "init_lora_weights": "gaussian"},
    ],
)
def test_a_lora_of_any_scale_becomes_one_of_scale_one(settings: dict, tmp_path: Path) -> None:
    targets = ["q_proj", "v_proj"]
    config = LoraConfig(**{"r": 2, "target_modules": targets, "task_type": "SEQ_CLS", **settings})
    model = get_peft_model(tiny(), config)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=generator)
    export_lora(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["lora_alpha"] == written["r"] and not written["use_rslora"]
    assert written["alpha_pattern"] == written["rank_pattern"]
    again = PeftModel.from_pretrained(tiny(), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(model) - logits(tiny())).abs().max() > 0.1


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    model = trained(tiny())
    with pytest.raises(ModelError, match=r"no adapter 'defalt'\. Did you mean 'default'\?"):
        export_lora(model, tmp_path, adapter_name="defalt")
    with pytest.raises(ModelError, match="needs a PeftModel, got LlamaForSequenceClassification"):
        export_lora(tiny(), tmp_path)
    common = {"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    for config, words in (
        (ContextualLoraConfig(**common), "The adapter is CONTEXTUAL_LORA"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "The adapter is IA3"),
        (LoraConfig(**common, use_dora=True), "q_proj: the update is not a product"),
        (LoraConfig(r=2, target_modules=["embed_tokens"]), "embed_tokens: the update is not"),
        (LoraConfig(**common, init_lora_weights="olora"), "init_lora_weights='olora'"),
    ):
        with pytest.raises(ModelError, match=words):
            export_lora(get_peft_model(tiny(), config), tmp_path)
    assert not list(tmp_path.iterdir())
