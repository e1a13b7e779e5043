"""Where a backbone computes, and in which precision."""

from __future__ import annotations

import torch

from bayestune.errors import ConfigError, ModelError, nearest

_DTYPES = ("float32", "bfloat16", "float16")


def pick_device(device: str) -> torch.device:
    """Return the device for ``auto`` (CUDA, then Apple, then CPU) or for its name.

    Raises:
        ModelError: if there is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"The device {device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the type of the frozen weights; ``auto`` is bf16 on CUDA where it has it, else fp32.

    Raises:
        ConfigError: if there is no such type.
    """
    if dtype == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"There is no dtype {dtype!r}.{nearest(dtype, ('auto', *_DTYPES))}")
    return getattr(torch, dtype)
