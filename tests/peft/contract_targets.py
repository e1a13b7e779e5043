"""The contract of an adapter: where it goes."""

from __future__ import annotations

from pathlib import Path

from contract_base import KINDS, ContractBase
from peft import PeftModel
from peft_tiny import LINEAR, exactly, logits, tiny
from torch import nn


class TargetContract(ContractBase):
    """Targets and layers."""

    @KINDS
    def test_all_linear_spares_the_head(self, kind: str) -> None:
        base = tiny(kind)
        head = {"llama": {"score"}, "bert": {"classifier"}}[kind]
        expected = {n for n, m in base.named_modules() if isinstance(m, nn.Linear)} - head
        model = self.wrap(base, kind, target_modules="all-linear")
        assert self.names(model) == expected
        assert {n.rpartition(".")[2] for n in expected} == LINEAR[kind]

    def test_layers_to_transform(self, tmp_path: Path) -> None:
        model = self.wrap(tiny(layers=3), target_modules=["q_proj"], layers_to_transform=[0, 2])
        assert {n.split(".")[2] for n in self.names(model)} == {"0", "2"}
        assert len(self.names(model)) == 2
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
