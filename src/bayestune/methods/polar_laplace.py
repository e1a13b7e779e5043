"""Laplace-PoLAR: a Gaussian around the trained cores of PoLAR, given their frames.

    ΔW = s · X Θ Yᵀ,   q(Θ) = N(Θ*, (G ⊗ A + τI)⁻¹),   G, A ∈ R^{r×r}

Laplace-LoRA where the factors are small and exact and no gauge is free but rotations, which an
isotropic prior does not see.

Source: Yang, Robeyns, Wang and Aitchison 2024 (arXiv 2308.13111); PoLAR: arXiv 2506.03133.
"""

from __future__ import annotations

from dataclasses import replace

from bayestune.methods import laplace_lora

METHOD = replace(
    laplace_lora.METHOD,
    name="polar_laplace",
    summary="Laplace posterior over PoLAR's cores; one backward pass per class",
    source="arXiv 2308.13111, 2506.03133",
    defaults={
        "adapter": {"kind": "polar"},
        "head": {"kind": "linear"},
        "train": {"kl": 0.0},
        "finalize": {"refresh": "none", "temperature": "none"},
    },
)
