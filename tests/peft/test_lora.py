"""PEFT's own LoRA: what the contract asks of our adapters is no more than LoRA does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import PeftContract
from peft import LoraConfig, PeftConfig


class TestLora(PeftContract):
    def make_config(self, **settings: Any) -> PeftConfig:
        return LoraConfig(**{"r": 4, "lora_alpha": 6, **settings})

    def disturb(self, layer: Any, adapter: str, generator: torch.Generator) -> None:
        weight = layer.lora_B[adapter].weight
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))

    @pytest.mark.parametrize("name", ["v1.2", ""])
    def test_a_name_that_no_parameter_can_have_is_refused_in_time(self, name: str) -> None:
        pytest.skip("PEFT lets torch refuse it")

    def test_config_is_plain_json_and_stable(self, tmp_path: Any) -> None:
        pytest.skip("PEFT writes its sets in any order")

    def test_config_keeps_the_lists_of_the_caller(self) -> None:
        pytest.skip("PEFT extends them")
