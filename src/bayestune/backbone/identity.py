"""What a loaded backbone computes, wherever its files lie and however they are cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

#: Config keys that say how a model was written or is used, not what it computes.
PASSING = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "architectures",
        "id2label",
        "label2id",
        "num_labels",
        "pad_token_id",
        "quantization_config",
    }
)
_SAMPLES = 64


@torch.no_grad()
def identity(transformer: nn.Module) -> str:
    """Return a digest of a transformer's config and of 64 numbers of each of its weights.

    The numbers are compared in bfloat16, so that the same backbone loaded in float32 and in
    bfloat16 is the same. It is taken before an adapter is put around the layers.

    Args:
        transformer: the bare transformer as it was loaded.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    config = getattr(transformer, "config", None)
    values = {} if config is None else config.to_dict()
    lasting = {k: v for k, v in values.items() if k not in PASSING}
    digest.update(json.dumps(lasting, sort_keys=True, default=str).encode())
    for name, weight in sorted(transformer.named_parameters()):
        digest.update(f"{name}:{tuple(weight.shape)}".encode())
        for flat in _numbers(weight.detach()):
            picked = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
            digest.update(picked.float().bfloat16().view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _numbers(weight: Tensor) -> Iterator[Tensor]:
    """Yield a weight's numbers; those of its parts where a quantised tensor knows no others."""
    try:
        yield weight.flatten()
    except NotImplementedError:
        if not is_traceable_wrapper_subclass(weight):
            raise
        for name in weight.__tensor_flatten__()[0]:
            yield from _numbers(getattr(weight, name))
