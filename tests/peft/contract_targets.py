"""The contract of an adapter: where it goes, and several of them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract_base import KINDS, ContractBase
from peft import (
    PeftModel,
    get_peft_model,
)
from peft_tiny import LINEAR, adapted, exactly, inputs, logits, tiny
from torch import nn

from bayestune.errors import ModelError


class TargetContract(ContractBase):
    """Targets, layers, refusals and further adapters."""

    @KINDS
    def test_all_linear_spares_the_head(self, kind: str) -> None:
        base = tiny(kind)
        head = {"llama": {"score"}, "bert": {"classifier"}}[kind]
        expected = {n for n, m in base.named_modules() if isinstance(m, nn.Linear)} - head
        model = self.wrap(base, kind, target_modules="all-linear")
        assert self.names(model) == expected
        assert {n.rpartition(".")[2] for n in expected} == LINEAR[kind]
        # Saved in short, so that the adapter fits the network under another head too.
        assert model.peft_config["default"].target_modules == LINEAR[kind]

    @pytest.mark.parametrize("targets", [["q_proj"], "all-linear"])
    def test_layers_to_transform(self, targets: Any, tmp_path: Path) -> None:
        model = self.wrap(tiny(layers=3), target_modules=targets, layers_to_transform=[0, 2])
        assert {n.split(".")[2] for n in self.names(model)} == {"0", "2"}
        assert len(self.names(model)) == 2 * (1 if targets == ["q_proj"] else len(LINEAR["llama"]))
        model.save_pretrained(tmp_path)
        exactly(logits(PeftModel.from_pretrained(tiny(layers=3), tmp_path)), logits(model))

    def test_regular_expression_and_exclusion(self) -> None:
        model = self.wrap(tiny(), target_modules=r".*\.1\..*(q|k)_proj")
        assert {n.split(".", 2)[2] for n in self.names(model)} == {
            "1.self_attn.q_proj",
            "1.self_attn.k_proj",
        }
        model = self.wrap(tiny(), target_modules="all-linear", exclude_modules=["mlp.up_proj"])
        assert {n.rpartition(".")[2] for n in self.names(model)} == LINEAR["llama"] - {"up_proj"}

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"target_modules": ["q_proj", "v_prj"]}, r"'v_prj'\. Did you mean 'v_proj'\?"),
            ({"target_modules": "q_proj"}, "regular expression.*pass a list.*'q_proj'"),
            ({"target_modules": []}, "empty.*Valid: 'q_proj'"),
            ({"target_modules": ["mlp"]}, "'model.layers.0.mlp' is a LlamaMLP"),
            ({"layers_to_transform": [0, 7]}, r"layer 7.*\['q_proj', 'v_proj'\]"),
            ({"target_modules": "all-linear", "layers_to_transform": 2}, r"layer 2.*'q_proj'"),
            ({"exclude_modules": ["q_proj", "v_proj"]}, "leaves nothing to adapt"),
            ({"target_modules": None, "kind": "bare"}, "no default target_modules.*'custom'"),
        ],
    )
    def test_wrong_targets_are_named_before_anything_changes(
        self, settings: dict[str, Any], said: str
    ) -> None:
        settings = {"target_modules": ["q_proj", "v_proj"], **settings}
        kind = settings.pop("kind", "llama")
        base = nn.Sequential(nn.Linear(8, 8)) if kind == "bare" else tiny()
        with pytest.raises(ModelError, match=said):
            get_peft_model(base, self.make_config(**settings))
        assert not list(adapted(base))

    def test_attention_weights_used_without_a_call_are_refused(self) -> None:
        base = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        with pytest.raises(ModelError, match=r"'self_attn.out_proj'.*parent calls"):
            get_peft_model(base, self.make_config(target_modules=["out_proj"]))

    def test_add_set_and_delete(self) -> None:
        model = self.wrap(tiny(dtype=torch.float64))
        first = logits(model)
        model.add_adapter(
            "other", self.make_config(target_modules=["q_proj", "up_proj"], task_type="SEQ_CLS")
        )
        model.base_model.set_requires_grad("other", False)
        self.disturb_all(model, "other", seed=3)
        exactly(logits(model), first)
        model.set_adapter("other")
        second = logits(model)
        assert not torch.allclose(first, second)
        assert not any(
            p.requires_grad for n, p in model.named_parameters() if n.endswith(".default")
        )
        model.set_adapter("default")
        exactly(logits(model), first)
        model.set_adapter("other")
        model.delete_adapter("default")
        exactly(logits(model), second)
        with pytest.raises(ValueError, match="does not exist"):
            model.delete_adapter("default")
        assert {n.rpartition(".")[2] for n in self.names(model) if "layers.0" in n} == {
            "q_proj",
            "v_proj",
            "up_proj",
        }

    def test_two_active_adapters_add_up(self) -> None:
        model = self.wrap(tiny(dtype=torch.float64), task_type=None)
        model.add_adapter("other", self.make_config(target_modules=["q_proj", "down_proj"]))
        self.disturb_all(model, "other", seed=3)
        model.base_model.set_adapter(["default", "other"])
        both = logits(model)
        dense = tiny(dtype=torch.float64)
        for name, layer in adapted(model):
            for adapter in layer._get_available_adapters():
                dense.get_submodule(name).weight.data += self.dense_delta(layer, adapter)
        torch.testing.assert_close(both, logits(dense))
        model.merge_adapter()
        torch.testing.assert_close(logits(model), both)
        model.unmerge_adapter()
        exactly(logits(model), both)

    def test_mixed_batches_are_refused(self) -> None:
        model = self.wrap(tiny())
        with pytest.raises(ModelError, match=r"no mixed batches.*set_adapter"):
            model(**inputs(), adapter_names=["default"] * 3)
