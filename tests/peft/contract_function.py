"""The contract of an adapter: the function it computes."""

from __future__ import annotations

import torch
from contract_base import KINDS, ContractBase
from peft import get_peft_model
from peft_tiny import TARGETS, adapted, exactly, inputs, logits, tiny


class FunctionContract(ContractBase):
    """Start, forward pass, gradients, switching off."""

    @KINDS
    def test_starts_at_the_base_model(self, kind: str) -> None:
        base = tiny(kind)
        expected = logits(base)
        model = get_peft_model(
            base, self.make_config(target_modules=TARGETS[kind], task_type="SEQ_CLS")
        )
        exactly(logits(model), expected)
        self.disturb_all(model, "default", seed=2)
        assert (logits(model) - expected).abs().max() > 1e-2

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
        own = {id(p) for _, layer in adapted(model) for _, p in self.parameters(layer, "default")}
        for name, parameter in model.named_parameters():
            ours = id(parameter) in own or ".modules_to_save." in name
            assert parameter.requires_grad == ours, name

    def test_gradient_checkpointing_changes_no_gradient(self) -> None:
        model = self.wrap(tiny(dtype=torch.float64)).train()
        gradients = []
        for _ in range(2):
            model.zero_grad()
            model(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
            model.gradient_checkpointing_enable({"use_reentrant": False})
        assert all(g is not None for pair in gradients for g in pair)
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(checkpointed, plain)
        assert sum(bool(g.any()) for g in gradients[0]) > len(gradients[0]) // 2

    def test_unload_gives_the_base_model_back(self) -> None:
        base = tiny()
        expected = {k: v.clone() for k, v in base.state_dict().items() if "score" not in k}
        plain = self.wrap(base).unload()
        for key, value in expected.items():
            exactly(plain.state_dict()[key], value)
