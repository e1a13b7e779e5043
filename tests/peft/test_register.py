"""Registration with PEFT from outside its tree."""

from __future__ import annotations

import copy
import json

import pytest
from peft import LoraConfig, LoraModel, PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from bayestune.errors import ModelError
from bayestune.peft import LinearTuner, PolarConfig, PolarModel, method_key, register

MAPS = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)


def test_polar_is_found_by_name_and_by_key() -> None:
    for key in ("POLAR", method_key("POLAR")):
        assert [m[key] for m in MAPS] == [PolarConfig, PolarModel, "polar_"]


def test_registering_again_changes_nothing() -> None:
    before = [dict(m) for m in MAPS]
    register("POLAR", PolarConfig, PolarModel)
    assert [dict(m) for m in MAPS] == before


def test_key_behaves_like_a_member_of_the_enumeration() -> None:
    key = method_key("POLAR")
    assert (key, key.value, key.name, str(key)) == ("POLAR", "POLAR", "POLAR", "PeftType.POLAR")
    assert hash(key) == hash("POLAR")
    assert json.dumps({"peft_type": key}) == '{"peft_type": "POLAR"}'
    twin = copy.deepcopy(key)
    assert (twin, twin.value) == ("POLAR", "POLAR")
    assert str(PeftType.LORA) == "PeftType.LORA"


def test_a_member_that_peft_has_is_used() -> None:
    assert method_key("LORA") is PeftType.LORA


def test_a_taken_name_or_prefix_is_refused() -> None:
    before = [dict(m) for m in MAPS]
    with pytest.raises(ModelError, match=r"already has a method 'LORA'.*LoraConfig"):
        register("LORA", PolarConfig, PolarModel)

    class Clash(LinearTuner):
        prefix = LoraModel.prefix

    with pytest.raises(ModelError, match="prefix 'lora_' of 'CLASH' belongs to PEFT's 'LORA'"):
        register("CLASH", LoraConfig, Clash)
    assert [dict(m) for m in MAPS] == before
