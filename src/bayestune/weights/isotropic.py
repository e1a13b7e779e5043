"""Isotropic noise on ΔW in the row space that LoRA has found: the posterior of TFB.

    B = U diag(d) Vᵀ,   B' = U diag(d),  A' = Vᵀ A + Ω ∘ E,  Ω_ij = σ_q / d_i
    ΔW − E ΔW = s σ_q U E

Source: Shi et al. 2024 (arXiv 2412.05723), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.site import Site, require_rank

#: Directions whose singular value is below this share of the largest carry no noise.
_NEGLIGIBLE = 1e-6


class IsotropicWeights(WeightDistribution):
    """Noise of one standard deviation σ_q on ΔW of every layer, in the directions of B.

    Args:
        sites: the factors A of LoRA layers.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__(sites)
        require_rank(self.sites)
        self.register_buffer("sigma", torch.zeros(()))
        for name, site in self.sites.items():
            self.register_buffer(_buffer(name), torch.zeros_like(site.weight[:, 0]))  # (r,)

    @torch.no_grad()
    def diagonalise(self) -> None:
        """Turn every ``B A`` into ``(U diag d) (Vᵀ A)``, the same product, and keep ``1 / d``."""
        for name, site in self.sites.items():
            B: Any = site.layer.lora_B["default"].weight
            left, d, right = torch.linalg.svd(B.double(), full_matrices=False)  # (m, r), (r,)
            site.weight.copy_(right @ site.weight.double())
            B.copy_(left * d)
            some = d > _NEGLIGIBLE * d.max()
            self.get_buffer(_buffer(name)).copy_(torch.where(some, 1 / d, 0))

    def draw(self, site: str, random: torch.Generator) -> Tensor:
        """Return ``Ω ∘ E``, ``(r, in)``."""
        weight = self.sites[site].weight
        noise = torch.randn(weight.shape, generator=random, dtype=weight.dtype)
        inverse = self.get_buffer(_buffer(site))
        return self.get_buffer("sigma") * inverse[:, None] * noise.to(weight.device)


def _buffer(site: str) -> str:
    return f"inverse:{key(site)}"
