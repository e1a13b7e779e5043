"""PoLAR adapters under a linear head, trained by maximum likelihood.

    ΔW = s · X Θ Yᵀ,  X, Y orthonormal;   L = −mean log softmax(Wφ)_y

Source: Lion, Zhang, Li and He 2025 (arXiv 2506.03133).
"""

from __future__ import annotations

from bayestune.methods import parts

METHOD = parts.compose(
    "polar_mle",
    "PoLAR adapters and a linear head, trained by maximum likelihood; a point estimate",
    "arXiv 2506.03133",
    parts.POINT,
    parts.POLAR,
)
