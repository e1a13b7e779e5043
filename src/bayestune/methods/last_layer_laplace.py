"""Last-layer Laplace: maximum likelihood, then a Gaussian around the head from its curvature.

    q(W) = N(Ŵ, (Σ_n (diag p − ppᵀ) ⊗ φφᵀ + τ)⁻¹),   τ by held-out likelihood

``finalize.refresh`` says how much of the curvature is kept: Kronecker factors fit any number of
classes, ``full`` is all of it.

Source: Kristiadi, Hein and Hennig 2020 (arXiv 2002.10118), Daxberger et al. 2021 (2106.14806).
"""

from __future__ import annotations

from bayestune.methods import parts

METHOD = parts.compose(
    "last_layer_laplace",
    "maximum likelihood, then a Laplace posterior over the head; uncertainty in one pass",
    "arXiv 2106.14806",
    parts.POINT,
    {"finalize": {"refresh": "kronecker"}},
    after=("mle", "map"),
)
