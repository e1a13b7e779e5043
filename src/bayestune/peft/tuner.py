"""The part of a PEFT tuner that every adapter of linear layers shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
)
from torch import nn

from bayestune.errors import ModelError
from bayestune.peft.additive import AdditiveLinear
from bayestune.peft.targets import check_name, check_targets

__all__ = ["LinearTuner"]


class LinearTuner(BaseTuner):
    """Puts one kind of `AdditiveLinear` around the targeted linear layers of a model.

    A subclass names its layer class and the prefix of its parameters.
    """

    tuner_layer_cls: ClassVar[type[AdditiveLinear]]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        kind = model_config.get("model_type")
        if peft_config.target_modules is None and kind not in self.target_module_mapping:
            raise ModelError(
                f"There are no default target_modules for the architecture {kind!r}. Name the "
                "linear layers to adapt, or pass target_modules='all-linear'."
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        # PEFT's last hook before it replaces modules: an error here leaves the model untouched.
        check_targets(peft_config, model, **get_quantization_kwargs(self.model))

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        check_name(adapter_name)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(
            target, adapter_name, peft_config, **get_quantization_kwargs(self.model)
        )
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT drops this argument for methods other than LoRA, and would use the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise ModelError(
                f"{type(self).__name__} has no mixed batches: adapter_names selects adapters per "
                "row. Run one batch per adapter with set_adapter, or export to LoRA."
            )
        yield
