"""Independent Gaussian weights, learnt by backpropagation: the posterior of BLoB.

    q(A) = Π N(A_ij; M_ij, Ω_ij²),   Ω = G ∘ G,   p(A) = Π N(A_ij; 0, σ_p²)

Source: Wang et al. 2024 (arXiv 2406.11675), sections 3.1 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.site import Site


def gaussian_kl(mean: Tensor, std: Tensor, prior_std: float) -> Tensor:
    """Return ``KL(N(m, σ²) ‖ N(0, σ_p²))`` summed over independent entries, in nats.

    Σ log(σ_p/σ) + (σ² + m²) / (2σ_p²) − ½
    """
    ratio = std / prior_std
    return (-ratio.log() + 0.5 * (ratio.square() + (mean / prior_std).square() - 1)).sum()


def cycle_weight(step: int, rows: int, batch_size: int) -> float:
    """Return the weight of the divergence at a step of the published cycles, against a mean loss.

        π_i = 2^i / (2^(M+1) − 1),  i = 1 … M,   M = ⌊100 · N^(π/8) / b⌋

    A cycle's weights sum to about 1, so that on average it is 1/M where the evidence has 1/N, and
    nearly all of it falls into the last few steps of the cycle.

    Args:
        step: from 0.
        rows: N.
        batch_size: b.

    Source: the code of arXiv 2406.11675; Blundell et al. 2015, section 3.4, with weights that fall.
    """
    cycle = max(1, int(100 * rows ** (math.pi / 8) / batch_size))
    i = step % cycle + 1
    return math.exp2(i - cycle - 1) / (1 - math.exp2(-cycle - 1))


def flipout(x: Tensor, std: Tensor) -> Tensor:
    """Return noise ``x ΔᵀW`` with an own ``ΔW ~ N(0, Ω²)`` for every example, one draw for all.

        (x ∘ r) (Ω ∘ E)ᵀ ∘ s,   r, s random signs of the example

    Examples of a batch see deviations that are uncorrelated given E, and every position of an
    example sees the same one: each pass is a pass under one draw of the weights.

    Args:
        x: inputs, ``(B, ..., in)``.
        std: Ω, ``(out, in)``.

    Returns:
        ``(B, ..., out)``.

    Source: Wen et al. 2018 (arXiv 1803.04386), eq. 4.
    """
    shape = (x.shape[0], *[1] * (x.ndim - 2))
    signs_in = torch.empty(*shape, std.shape[1], device=x.device, dtype=x.dtype)
    signs_out = torch.empty(*shape, std.shape[0], device=x.device, dtype=x.dtype)
    for signs in (signs_in, signs_out):
        signs.bernoulli_(0.5).mul_(2).sub_(1)
    noise = std * torch.randn_like(std)
    return ((x * signs_in) @ noise.mT) * signs_out


class GaussianWeights(WeightDistribution):
    """Independent Gaussian weights at every site, their deviations learnt with the mean.

    Args:
        sites: where; LoRA's A, or PoLAR's core.
        prior_std: σ_p.
        init_std: ε: G starts uniform in [ε/√2, ε].
        rate: learning rate of G.
        cycle: weigh the divergence by `cycle_weight` and not by 1/N.
        steps_itself: G and M step along the divergence by plain gradient descent, G along its
            likelihood term, too; the optimiser has the likelihood of M alone.
    """

    has_kl = True

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        prior_std: float,
        init_std: float,
        rate: float,
        cycle: bool = False,
        steps_itself: bool = False,
    ) -> None:
        super().__init__(sites)
        self.prior_std, self.rate = prior_std, rate
        self.cycle, self.steps_itself = cycle, steps_itself
        self.roots = nn.ParameterDict()
        for name, site in self.sites.items():
            root = torch.empty_like(site.weight).uniform_(init_std / math.sqrt(2), init_std)
            self.roots[key(name)] = nn.Parameter(root)

    def own_rates(self) -> dict[str, float]:
        """Return the learning rate of every parameter."""
        return {name: self.rate for name, _ in self.named_parameters()}

    def std(self, site: str) -> Tensor:
        """Return Ω of a site, ``(out, in)``; the sign of G does not matter."""
        return self.roots[key(site)].square()

    def draw(self, site: str, random: torch.Generator) -> Tensor:
        """Return ``Ω ∘ E``, ``(out, in)``."""
        std = self.std(site).detach()
        return std * torch.randn(std.shape, generator=random, dtype=std.dtype).to(std.device)

    def train_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Add noise that is each example's own."""
        return out + flipout(x, self.std(site))

    def kl_weight(self, step: int, rows: int, batch_size: int) -> float:
        """Return 1/N, or the weight of the published cycle."""
        return cycle_weight(step, rows, batch_size) if self.cycle else 1 / rows

    def own_step(self, weight: float, rate: float) -> None:
        """Take the published gradient step: G by likelihood and divergence, M by divergence."""
        means = [site.weight for site in self.sites.values()]
        roots = [self.roots[key(name)] for name in self.sites]
        slopes = torch.autograd.grad(weight * self.kl(), [*roots, *means])
        with torch.no_grad():
            for parameter, slope in zip([*roots, *means], slopes, strict=True):
                parameter.sub_(rate * self.rate * slope)
            for root in roots:
                root.sub_(rate * self.rate * root.grad)
                root.grad = None

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) over all sites in nats."""
        each = [
            gaussian_kl(site.weight, self.std(name), self.prior_std)
            for name, site in self.sites.items()
        ]
        return torch.stack(each).sum()
