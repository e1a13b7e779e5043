"""The contract of an adapter that adds a ΔW: it can be merged, summed and written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract_base import KINDS, AdditiveBase
from peft import PeftModel, get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from peft_tiny import LINEAR, TARGETS, adapted, exactly, inputs, logits, tiny, weight_key
from torch import nn

from bayestune.errors import ModelError, NumericsError


class MergeContract(AdditiveBase):
    """The sum with the base weight, merged or not."""

    @KINDS
    def test_starts_with_no_change(self, kind: str) -> None:
        model = get_peft_model(tiny(kind), self.make_config(target_modules=TARGETS[kind]))
        for _, layer in adapted(model):
            assert not self.dense_delta(layer, "default").any()
            assert not layer.get_delta_weight("default").any()

    @KINDS
    def test_forward_is_the_dense_sum(self, kind: str) -> None:
        model = self.wrap(tiny(kind, torch.float64), kind)
        dense = tiny(kind, torch.float64)
        before = logits(dense)
        for name, layer in adapted(model):
            delta = self.dense_delta(layer, "default")
            torch.testing.assert_close(layer.get_delta_weight("default"), delta)
            dense.get_submodule(name).weight.data += delta
        torch.testing.assert_close(logits(model), logits(dense))
        assert (logits(model) - before).abs().max() > 1e-2

    @KINDS
    def test_merged_is_applied_once(self, kind: str) -> None:
        model = self.wrap(tiny(kind, torch.float64), kind)
        expected = logits(model)
        model.merge_adapter()
        torch.testing.assert_close(logits(model), expected)
        with pytest.warns(UserWarning, match="already merged"):
            model.merge_adapter()
        torch.testing.assert_close(logits(model), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_unmerge_restores_every_bit(self, dtype: torch.dtype) -> None:
        model = self.wrap(tiny(dtype=dtype))
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        for _ in range(3):
            model.merge_adapter(safe_merge=True)
            _, layer = next(adapted(model))
            assert not torch.equal(layer.weight, weights[weight_key(model)])
            assert layer.weight.dtype == dtype
            model.unmerge_adapter()
        for key, value in model.state_dict().items():
            exactly(value, weights[key])

    def test_merge_rounds_once_under_a_bfloat16_base(self) -> None:
        model = self.wrap(tiny(dtype=torch.bfloat16))
        _, layer = next(adapted(model))
        exact = layer.weight.double() + self.dense_delta(layer, "default").double()
        model.merge_adapter()
        # One rounding to 8 significant bits is at most half a unit in the last place. Where the sum
        # nearly cancels, what remains of fp32 is more; a second rounding would be off by 1e-4.
        assert ((layer.weight.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()

    def test_disabling_takes_a_merged_adapter_out(self) -> None:
        base = tiny()
        expected = logits(base)
        model = self.wrap(base)
        model.merge_adapter()
        with model.disable_adapter():
            exactly(logits(model), expected)

    @KINDS
    def test_merge_and_unload_leaves_a_plain_model(self, kind: str) -> None:
        model = self.wrap(tiny(kind, torch.float64), kind)
        expected = logits(model)
        plain = model.merge_and_unload()
        torch.testing.assert_close(logits(plain), expected)
        assert not list(adapted(plain))
        assert {type(m) for m in plain.modules()} == {type(m) for m in tiny(kind).modules()}

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

    def test_one_of_two_can_be_merged(self) -> None:
        model = self.wrap(tiny(dtype=torch.float64), task_type=None)
        first = logits(model)
        model.add_adapter("other", self.make_config(target_modules=["k_proj", "q_proj"]))
        self.disturb_all(model, "other", seed=3)
        model.merge_adapter(adapter_names=["default"])
        torch.testing.assert_close(logits(model), first)
        model.unmerge_adapter()
        model.set_adapter("other")
        second = logits(model)
        assert not torch.allclose(first, second)
        torch.testing.assert_close(logits(model.merge_and_unload(adapter_names=["other"])), second)

    def test_safe_merge_refuses_damaged_weights(self) -> None:
        model = self.wrap(tiny())
        for _, layer in adapted(model):
            getattr(layer, layer.adapter_layer_names[0])["default"].data.fill_(torch.nan)
        with pytest.raises(NumericsError, match="NaN or infinite"):
            model.merge_adapter(safe_merge=True)


class AdditiveTargetContract(AdditiveBase):
    """What our tuners refuse, before anything is changed."""

    @KINDS
    def test_all_linear_is_saved_in_short(self, kind: str) -> None:
        model = self.wrap(tiny(kind), kind, target_modules="all-linear")
        # So that the adapter fits the network under another head too.
        assert model.peft_config["default"].target_modules == LINEAR[kind]

    def test_all_linear_of_some_layers(self, tmp_path: Path) -> None:
        model = self.wrap(tiny(layers=3), target_modules="all-linear", layers_to_transform=[0, 2])
        assert {n.split(".")[2] for n in self.names(model)} == {"0", "2"}
        assert len(self.names(model)) == 2 * len(LINEAR["llama"])
        model.save_pretrained(tmp_path)
        exactly(logits(PeftModel.from_pretrained(tiny(layers=3), tmp_path)), logits(model))

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

    def test_mixed_batches_are_refused(self) -> None:
        model = self.wrap(tiny())
        with pytest.raises(ModelError, match=r"no mixed batches.*set_adapter"):
            model(**inputs(), adapter_names=["default"] * 3)


class AdditiveFileContract(AdditiveBase):
    """Precision, and other forms of it."""

    def test_precision_is_kept_where_peft_would_leave_it_low(self) -> None:
        model = get_peft_model(
            tiny(dtype=torch.bfloat16),
            self.make_config(target_modules=["q_proj", "v_proj"]),
            autocast_adapter_dtype=False,
        )
        for _, layer in adapted(model):
            assert all(p.dtype == torch.float32 for _, p in self.parameters(layer, "default"))
        assert logits(model).dtype == torch.bfloat16

    def test_peft_converts_it_to_lora(self) -> None:
        model = self.wrap(tiny())
        rank = model.peft_config["default"].r
        _, state = convert_to_lora(model, rank=rank)
        for name, layer in adapted(model):
            key = f"base_model.model.{name}.lora_{{}}.weight"
            delta = state[key.format("B")] @ state[key.format("A")]
            torch.testing.assert_close(delta, self.dense_delta(layer, "default"))
