"""The contract of an adapter: several of them in one model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract_base import ContractBase
from peft import PeftModel, get_peft_model
from peft_tiny import adapted, exactly, logits, tiny

from bayestune.errors import ModelError


class NeighbourContract(ContractBase):
    """Adding, choosing, deleting, naming."""

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
        for _, layer in adapted(model):
            assert not any(p.requires_grad for _, p in self.parameters(layer, "default"))
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

    def test_several_are_saved_and_loaded_apart(self, tmp_path: Path) -> None:
        model = self.wrap(tiny())
        model.add_adapter("other", self.make_config(target_modules=["k_proj"], task_type="SEQ_CLS"))
        self.disturb_all(model, "other", seed=3)
        first = logits(model)
        model.set_adapter("other")
        second = logits(model)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny(), tmp_path, adapter_name="mine")
        again.load_adapter(tmp_path / "other", "third")
        exactly(logits(again), first)
        again.set_adapter("third")
        exactly(logits(again), second)
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("name", ["v1.2", ""])
    def test_a_name_that_no_parameter_can_have_is_refused_in_time(self, name: str) -> None:
        model = self.wrap(tiny(dtype=torch.float64))
        before = logits(model)
        config = self.make_config(target_modules=["q_proj", "up_proj"], task_type="SEQ_CLS")
        with pytest.raises(ModelError, match=f"cannot be called '{name}'.*no dot"):
            model.add_adapter(name, config)
        exactly(logits(model), before)
        assert list(model.peft_config) == ["default"]
        model.add_adapter("v1_2", config)
        exactly(logits(model), before)
        if name:  # PEFT itself needs one for the first
            with pytest.raises(ModelError, match="cannot be called"):
                get_peft_model(tiny(), self.make_config(target_modules=["q_proj"]), name)

    def test_peft_reports_on_it(self) -> None:
        model = self.wrap(tiny())
        status = model.get_model_status()
        assert (status.enabled, status.active_adapters) == (True, ["default"])
        assert status.peft_types == {"default": model.peft_config["default"].peft_type.value}
        assert status.num_adapter_layers - 1 == len(self.names(model))  # and the head
        own = [p for _, layer in adapted(model) for _, p in self.parameters(layer, "default")]
        assert status.trainable_params == sum(p.numel() for p in own) + model.score.weight.numel()
