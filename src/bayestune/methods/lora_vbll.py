"""A variational Bayesian last layer on LoRA: PoLAR-VBLL without its adapter.

    q(W) = Π_k N(w̄_k, S_k),   L = −mean [ μ_y − LSE(μ + ½v) ] + κ/N · KL(q ‖ p)

Source: Harrison, Willes and Snoek 2024 (arXiv 2404.11599).
"""

from __future__ import annotations

from bayestune.methods import parts

METHOD = parts.compose(
    "lora_vbll",
    "LoRA adapters and a variational Bayesian last layer; uncertainty in one pass",
    "arXiv 2404.11599",
    {"adapter": {"kind": "lora"}, "train": {"lr": 5e-4}},
)
