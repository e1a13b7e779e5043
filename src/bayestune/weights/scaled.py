"""Random singular values: the posterior of ScalaBL, r numbers per layer.

    ΔW = s_α · B diag(s̃) V,   s̃ ~ N(μ, diag σ²),   μ = exp(log_mean),   V orthonormal at first

Source: Samplawski et al. 2025 (arXiv 2506.21408), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.site import Site, require_rank


def normal_kl(mean: Tensor, std: Tensor, *, reverse: bool = False) -> Tensor:
    """Return the divergence between independent N(μ, σ²) and N(0, 1), summed, in nats.

        KL(q ‖ p) = Σ −log σ + (σ² + μ²) / 2 − ½
        KL(p ‖ q) = Σ  log σ + (1 + μ²) / 2σ² − ½

    Args:
        mean: μ.
        std: σ.
        reverse: the second one, which the published implementation minimises.
    """
    if reverse:
        return (std.log() + (1 + mean.square()) / (2 * std.square()) - 0.5).sum()
    return (-std.log() + 0.5 * (std.square() + mean.square() - 1)).sum()


class ScaledWeights(WeightDistribution):
    """Gaussian factors between LoRA's two: one mean and one deviation per rank and layer.

    While training, the adapter holds V and the scales stand beside it; `fold` makes ``diag(μ) V``
    of it, so that the plain adapter is the mean.

    Args:
        sites: the factors A of LoRA layers, at their random start.
        init_std: ε: deviations start uniform in [ε/√2, ε].
        rate: learning rate of the logarithms of the deviations.
        reverse: minimise KL(p ‖ q).
    """

    has_kl = True

    def __init__(
        self, sites: Mapping[str, Site], *, init_std: float, rate: float, reverse: bool
    ) -> None:
        super().__init__(sites)
        require_rank(self.sites)
        self.rate, self.reverse = rate, reverse
        self.log_mean, self.log_std = nn.ParameterDict(), nn.ParameterDict()
        self.register_buffer("folded", torch.tensor(False))
        for name, site in self.sites.items():
            _, s, V = torch.linalg.svd(site.weight.detach().double(), full_matrices=False)
            with torch.no_grad():
                site.weight.copy_(V)
            std = torch.empty_like(s).uniform_(init_std / math.sqrt(2), init_std)
            self.log_mean[key(name)] = nn.Parameter(s.log().to(site.weight.dtype))
            self.log_std[key(name)] = nn.Parameter(std.log().to(site.weight.dtype))

    def train(self, mode: bool = True) -> ScaledWeights:
        """Switch to noise; a model that was folded takes its means apart again."""
        if mode and self.folded:
            self._multiply(-1)
        super().train(mode)
        return self

    def own_rates(self) -> dict[str, float]:
        """Return the learning rate of every deviation; means move with the adapter."""
        return {f"log_std.{name}": self.rate for name in self.log_std}

    def moments(self, site: str) -> tuple[Tensor, Tensor]:
        """Return μ and σ of a layer, each ``(r,)``."""
        return self.log_mean[key(site)].exp(), self.log_std[key(site)].exp()

    def draw(self, site: str, random: torch.Generator) -> Tensor:
        """Return ``diag(σ ∘ ε) V``, ``(r, in)``."""
        mean, std = (t.detach() for t in self.moments(site))
        noise = torch.randn(std.shape, generator=random, dtype=std.dtype).to(std.device)
        scale = std / mean if self.folded else std
        return (scale * noise)[:, None] * self.sites[site].weight.detach()

    def mean_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Return ``diag(μ) V x``."""
        return out if self.folded else out * self.moments(site)[0]

    def train_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Return ``diag(μ + σ ∘ ε) V x`` with an own ε for every example."""
        mean, std = self.moments(site)
        shape = (x.shape[0], *[1] * (x.ndim - 2), len(std))
        noise = torch.randn(shape, dtype=std.dtype, device=std.device)
        return out * (mean + std * noise)

    def kl(self) -> Tensor:
        """Return the divergence over all layers in nats."""
        each = [normal_kl(*self.moments(name), reverse=self.reverse) for name in self.sites]
        return torch.stack(each).sum()

    def settle(self) -> dict[str, Any]:
        """Fold the means into the adapter; return how large the noise is beside them."""
        self.fold()
        with torch.no_grad():
            ratios = [std / mean for mean, std in map(self.moments, self.sites)]
        return {"noise_to_mean": float(torch.cat(ratios).mean())}

    def fold(self) -> None:
        """Make the adapter's A ``diag(μ) V``; what the model computes stays the same."""
        if not self.folded:
            self._multiply(1)

    @torch.no_grad()
    def _multiply(self, power: int) -> None:
        for name, site in self.sites.items():
            site.weight.mul_(self.moments(name)[0][:, None] ** power)
        self.get_buffer("folded").fill_(power > 0)
