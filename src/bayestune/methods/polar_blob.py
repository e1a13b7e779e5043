"""BLoB on PoLAR: a Gaussian over the core Θ, its frames points.

    ΔW = s · X Θ Yᵀ,   q(Θ) = Π N(M_ij, G_ij⁴),   p(Θ) = Π N(0, σ_p²)

r² random weights a layer where BLoB has r · n; the frames carry no noise, so that draws of ΔW keep
their row and column spaces.

Source: Wang et al. 2024 (arXiv 2406.11675) over arXiv 2506.03133.
"""

from __future__ import annotations

from bayestune.methods import blob, parts
from bayestune.methods.checks import require_plain_under_point

METHOD = parts.compose(
    "polar_blob",
    "Gaussian over PoLAR's core, learnt by backpropagation; S passes of the adapted layers",
    "arXiv 2406.11675",
    parts.POINT,
    parts.POLAR,
    {"train": {"kl": 1.0}},
    build=blob.build,
    check=require_plain_under_point,
    options=blob.Options,
)
