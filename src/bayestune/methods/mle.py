"""Maximum likelihood: LoRA adapters and a linear head, the baseline every method is held against.

    L = −mean log softmax(Wφ)_y

With ``adapter.kind=polar`` it is PoLAR with a linear head; with ``finalize.temperature=auto``
temperature scaling; with ``finalize.refresh=block`` a last-layer Laplace approximation.

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

from bayestune.methods import parts
from bayestune.methods.contract import Method

METHOD = Method(
    name="mle",
    summary="LoRA adapters and a linear head, trained by maximum likelihood; a point estimate",
    source="arXiv 2106.09685",
    build=parts.build,
    loss=parts.loss,
    finalize=parts.finalize,
    predict=parts.predict,
    defaults={
        "adapter": {"kind": "lora"},
        "head": {"kind": "linear"},
        "train": {"lr": 5e-4, "kl": 0.0},
        "finalize": {"refresh": "none", "temperature": "none"},
    },
)
