"""The contract of an adapter: the function it computes, merged or not."""

from __future__ import annotations

import pytest
import torch
from contract_base import KINDS, ContractBase
from peft import (
    get_peft_model,
)
from peft_tiny import TARGETS, adapted, exactly, inputs, logits, tiny, weight_key

from bayestune.errors import NumericsError


class FunctionContract(ContractBase):
    """Start, forward pass, disabling and merging."""

    @KINDS
    def test_starts_at_the_base_model(self, kind: str) -> None:
        base = tiny(kind)
        expected = logits(base)
        model = get_peft_model(
            base, self.make_config(target_modules=TARGETS[kind], task_type="SEQ_CLS")
        )
        exactly(logits(model), expected)
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

    def test_result_does_not_depend_on_the_rows_beside_it(self) -> None:
        model = self.wrap(tiny(dtype=torch.float64))
        tokens = inputs(rows=4)["input_ids"]
        with torch.no_grad():
            together = model(input_ids=tokens).logits
            alone = torch.cat([model(input_ids=row[None]).logits for row in tokens])
        torch.testing.assert_close(together, alone)

    def test_disabled_is_the_base_model(self) -> None:
        base = tiny()
        expected = logits(base)
        model = self.wrap(base)
        changed = logits(model)
        with model.disable_adapter():
            exactly(logits(model), expected)
        exactly(logits(model), changed)
        assert not torch.equal(changed, expected)

    def test_only_adapter_and_head_train(self) -> None:
        model = self.wrap(tiny())
        keys = {f".{name}." for _, layer in adapted(model) for name in layer.adapter_layer_names}
        for name, parameter in model.named_parameters():
            ours = any(key in name for key in keys) or ".modules_to_save." in name
            assert parameter.requires_grad == ours, name

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
        # One rounding to 8 significant bits is at most half a unit in the last place.
        assert ((layer.weight.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-12).all()

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

    def test_unload_gives_the_base_model_back(self) -> None:
        base = tiny()
        expected = {k: v.clone() for k, v in base.state_dict().items() if "score" not in k}
        plain = self.wrap(base).unload()
        for key, value in expected.items():
            exactly(plain.state_dict()[key], value)

    def test_safe_merge_refuses_damaged_weights(self) -> None:
        model = self.wrap(tiny())
        for _, layer in adapted(model):
            getattr(layer, layer.adapter_layer_names[0])["default"].data.fill_(torch.nan)
        with pytest.raises(NumericsError, match="NaN or infinite"):
            model.merge_adapter(safe_merge=True)
