"""Full precision for the head, whatever the backbone around it runs in."""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.errors import ModelError


def full_precision(h: Tensor, weight: Tensor) -> Tensor:
    """Return the features in the dtype of the weights, which must be float32 or float64.

    Args:
        h: features, ``(..., D)``, in any floating dtype.
        weight: weights of the head, ``(K, D)``.

    Returns:
        Features, ``(..., D)``.

    Raises:
        ModelError: the head was cast to half precision, or the features have another size.
    """
    if weight.dtype not in (torch.float32, torch.float64):
        raise ModelError(
            f"The head's weights are {weight.dtype}; a posterior needs float32. "
            "Cast the backbone before the head is installed, or call head.float()."
        )
    if h.shape[-1] != weight.shape[1]:
        raise ModelError(
            f"The features have {h.shape[-1]} dimensions; the head was built for {weight.shape[1]}."
        )
    return h.to(weight.dtype)


def wide_device(device: torch.device) -> torch.device:
    """Return where float64 is computed: on the device itself, or on the CPU where it has none."""
    return torch.device("cpu") if device.type == "mps" else device


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Return a context in which mixed precision is off on the device of ``tensor``."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
