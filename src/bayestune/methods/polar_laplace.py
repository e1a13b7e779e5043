"""Laplace-PoLAR: a Gaussian around the trained cores of PoLAR, given their frames.

    ΔW = s · X Θ Yᵀ,   q(Θ) = N(Θ*, (G ⊗ A + τI)⁻¹),   G, A ∈ R^{r×r}

Laplace-LoRA where the factors are small and exact and no gauge is free but rotations, which an
isotropic prior does not see.

Source: Yang, Robeyns, Wang and Aitchison 2024 (arXiv 2308.13111); PoLAR: arXiv 2506.03133.
"""

from __future__ import annotations

from bayestune.methods import laplace_lora, parts
from bayestune.methods.checks import require_plain_under_point

METHOD = parts.compose(
    "polar_laplace",
    "Laplace posterior over PoLAR's cores; one backward pass per class",
    "arXiv 2308.13111",
    parts.POINT,
    parts.POLAR,
    build=laplace_lora.build,
    check=require_plain_under_point,
    settle=laplace_lora.settle,
    after=("polar_mle",),
    options=laplace_lora.Options,
)
