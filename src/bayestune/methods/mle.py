"""Maximum likelihood: LoRA adapters and a linear head, the baseline every method is held against.

    L = −mean log softmax(Wφ)_y

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

from bayestune.methods import parts

METHOD = parts.compose(
    "mle",
    "LoRA adapters and a linear head, trained by maximum likelihood; a point estimate",
    "arXiv 2106.09685",
    parts.POINT,
)
