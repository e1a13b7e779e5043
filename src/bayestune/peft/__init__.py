"""PoLAR and contextual LoRA as PEFT methods: importing this package registers them with PEFT."""

from __future__ import annotations

from bayestune.peft.additive import AdditiveLinear
from bayestune.peft.config import PolarConfig
from bayestune.peft.contextual import (
    Context,
    ContextualLoraConfig,
    ContextualLoraModel,
    has_context,
)
from bayestune.peft.export import export_lora, lora_factors, lora_settings, write_lora
from bayestune.peft.layer import PolarLinear
from bayestune.peft.model import PolarModel
from bayestune.peft.register import MethodKey, method_key, register
from bayestune.peft.report import AdapterRow, adapter_report, summarise
from bayestune.peft.tuner import LinearTuner

__all__ = [
    "AdapterRow",
    "AdditiveLinear",
    "Context",
    "ContextualLoraConfig",
    "ContextualLoraModel",
    "LinearTuner",
    "MethodKey",
    "PolarConfig",
    "PolarLinear",
    "PolarModel",
    "adapter_report",
    "export_lora",
    "has_context",
    "lora_factors",
    "lora_settings",
    "method_key",
    "register",
    "summarise",
    "write_lora",
]

register("POLAR", PolarConfig, PolarModel)
register("CONTEXTUAL_LORA", ContextualLoraConfig, ContextualLoraModel)
