"""The contract of an adapter: files, heads and precision."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from contract_base import KINDS, ContractBase
from peft import (
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
)
from peft_tiny import LABELS, adapted, exactly, inputs, logits, tiny
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification


class FileContract(ContractBase):
    """Saving, loading, copying."""

    @KINDS
    def test_saves_and_loads_every_bit(self, kind: str, tmp_path: Path) -> None:
        tiny(kind).save_pretrained(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        model = self.wrap(base, kind)
        expected = logits(model)
        model.save_pretrained(tmp_path / "adapter")
        saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        for again in (
            PeftModel.from_pretrained(tiny(kind), tmp_path / "adapter"),
            PeftModel.from_pretrained(tiny(kind), tmp_path / "adapter", low_cpu_mem_usage=True),
            AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter"),
        ):
            exactly(logits(again), expected)
            assert type(again.peft_config["default"]) is type(model.peft_config["default"])
            state = get_peft_model_state_dict(again)
            assert state.keys() == saved.keys()
            for key, value in state.items():
                exactly(value, saved[key])

    def test_saved_keys_and_files(self, tmp_path: Path) -> None:
        model = self.wrap(tiny())
        model.save_pretrained(tmp_path)
        expected = {"base_model.model.score.weight"} | {
            f"base_model.model.{name}.{parameter}"
            for name, layer in adapted(model)
            for parameter, _ in self.parameters(layer, "default")
        }
        assert load_file(tmp_path / "adapter_model.safetensors").keys() == expected
        assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}

    def test_config_is_plain_json_and_stable(self, tmp_path: Path) -> None:
        settings = {"target_modules": ["v_proj", "q_proj"], "exclude_modules": ["b", "a"]}
        config = self.make_config(**settings, layers_to_transform=[0, 1], task_type="SEQ_CLS")
        config.save_pretrained(tmp_path)
        text = (tmp_path / "adapter_config.json").read_text()
        assert json.loads(text)["peft_type"] == config.peft_type.value
        assert json.loads(text)["target_modules"] == ["q_proj", "v_proj"]
        assert json.loads(text)["exclude_modules"] == ["a", "b"]
        again = PeftConfig.from_pretrained(tmp_path)
        assert again == config
        assert type(again) is type(config)

    def test_config_keeps_the_lists_of_the_caller(self) -> None:
        mine = ["score"]
        self.wrap(tiny(), modules_to_save=mine)
        assert mine == ["score"]

    def test_modules_to_save_are_trained_and_saved(self, tmp_path: Path) -> None:
        model = self.wrap(tiny(), modules_to_save=["norm"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".modules_to_save." in name:
                    assert parameter.requires_grad
                    parameter.add_(1)
        model.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert saved["base_model.model.score.weight"].shape == (LABELS, 32)
        assert saved["base_model.model.model.norm.weight"].eq(2).all()
        exactly(logits(PeftModel.from_pretrained(tiny(), tmp_path)), logits(model))

    def test_low_precision_base_keeps_a_single_precision_adapter(self, tmp_path: Path) -> None:
        model = self.wrap(tiny(dtype=torch.bfloat16))
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny(dtype=torch.bfloat16), tmp_path, is_trainable=True)
        lazy = PeftModel.from_pretrained(
            tiny(dtype=torch.bfloat16), tmp_path, low_cpu_mem_usage=True
        )
        for one in (model, again, lazy):
            for _, layer in adapted(one):
                for name, parameter in self.parameters(layer, "default"):
                    assert parameter.dtype == torch.float32, name
        exactly(logits(again), logits(model))
        # PEFT's LoRA goes through the base's precision on this way, and loses some of its own.
        rounding = 0.0 if self.lazy_is_exact else 2**-8
        for one, relative in ((again, 0.0), (lazy, rounding)):
            for key, value in get_peft_model_state_dict(model).items():
                found = get_peft_model_state_dict(one)[key]
                torch.testing.assert_close(found, value, rtol=relative, atol=0)
        out = again(**inputs())
        assert out.logits.dtype == torch.bfloat16
        out.logits.float().square().sum().backward()
        gradients = [p.grad for p in again.parameters() if p.requires_grad]
        assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients)

    def test_a_copy_is_independent(self) -> None:
        model = self.wrap(tiny())
        expected = logits(model)
        twin = copy.deepcopy(model)
        exactly(logits(twin), expected)
        self.disturb_all(twin, "default", seed=9)
        exactly(logits(model), expected)
        assert not torch.equal(logits(twin), expected)

    def test_transformers_add_adapter(self, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()
        expected = logits(base)
        base.add_adapter(self.make_config(target_modules=["q_proj", "v_proj"]))
        exactly(logits(base), expected)
        self.disturb_all(base, "default", seed=2)
        changed = logits(base)
        assert not torch.equal(changed, expected)
        base.disable_adapters()
        exactly(logits(base), expected)
        base.enable_adapters()
        base.save_pretrained(tmp_path / "adapter")
        again = tiny()
        again.load_adapter(str(tmp_path / "adapter"))
        exactly(logits(again), changed)

    def test_transformers_loads_the_folder_by_itself(self, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        model = self.wrap(base)
        expected = logits(model)
        model.save_pretrained(tmp_path / "adapter")
        again = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "adapter", num_labels=LABELS
        )
        exactly(logits(again), expected)
        assert self.names(again) == self.names(model)
