"""PoLAR-VBLL: polar-decomposed adapters and a variational Bayesian last layer, one ELBO.

    ΔW = s · X Θ Yᵀ,  X, Y orthonormal;      q(W) = Π_k N(w̄_k, S_k)
    L  = −mean [ μ_y − LSE(μ + ½v) ] + κ/N · KL(q ‖ p),   μ = W̄φ,  v_k = φᵀS_kφ

Adapters (Riemannian) and posterior are updated in turn on the same backbone pass; a prediction with
full uncertainty costs one pass.

Source: Xiang, Li and Lu 2026 (arXiv 2604.03388); PoLAR: arXiv 2506.03133; VBLL: arXiv 2404.11599.
"""

from __future__ import annotations

from bayestune.methods import parts

METHOD = parts.compose(
    "polar_vbll",
    "PoLAR adapters and a variational Bayesian last layer; uncertainty in one pass",
    "arXiv 2604.03388",
)
