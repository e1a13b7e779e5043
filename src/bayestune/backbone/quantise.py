"""Frozen weights in fewer bits, quantised as they are loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bayestune.errors import ConfigError

#: Heads are not quantised; a classifier's is replaced, a language model's never evaluated.
_WHOLE = ["score", "lm_head"]


def is_quantised(config: Any) -> bool:
    """Return whether a model's configuration says that its weights are quantised."""
    return getattr(config, "quantization_config", None) is not None


def keep_gradients(model: nn.Module) -> None:
    """Have quantised layers take kernels with gradients in evaluation mode, too.

    Those of bitsandbytes take others on a CPU, which compute otherwise and have none.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point():
            module.training = True  # of a layer without dropout it says no more


def quantiser(kind: str, name: str, config: Any, dtype: torch.dtype) -> Any:
    """Return transformers' settings that quantise linear layers; None where nothing is to be.

    ``nf4`` is 4-bit NormalFloat with quantised constants, ``int8`` LLM.int8(), both of
    bitsandbytes.

    Args:
        kind: ``none``, ``nf4`` or ``int8``.
        name: of the model, for errors.
        config: its configuration.
        dtype: that products are computed in, but for ``int8``, which has its own.

    Raises:
        ConfigError: if the model is quantised already or bitsandbytes is not installed.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), 2022 (arXiv 2208.07339).
    """
    if kind == "none":
        return None
    if is_quantised(config):
        raise ConfigError(f"quantize={kind}: {name} is quantised already; leave quantize out.")
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantize={kind} needs bitsandbytes, which is not installed: pip install bitsandbytes."
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_WHOLE)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_WHOLE,
    )
