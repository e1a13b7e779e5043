"""A random matrix for every token: the posterior of C-LoRA.

Between the two factors of LoRA stands ``E ∈ R^{r×r}``, whose distribution the token decides:

    q(E | u) = Π N(mat(e)_ij, σ_ij²),   e and σ = sigmoid(g)² from a network on u = A x
    p(E)     = Π N(I_ij, β²)

A text of T tokens has T such matrices at every layer, all independent given the text. They are
latent variables of the text rather than weights: no number of training rows makes them certain.

Source: C-LoRA (arXiv 2505.17773).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bayestune.errors import ModelError
from bayestune.peft import Context
from bayestune.weights.distribution import Drawing, WeightDistribution, key
from bayestune.weights.noise import generator
from bayestune.weights.site import Site

#: Below this variance a deviation is taken for a constant: its root has no finite slope at 0.
_LEAST = 1e-20


def matrix_kl(mean: Tensor, std: Tensor, centre: Tensor, prior_std: float) -> Tensor:
    """Return ``KL(N(mean, std²) ‖ N(centre, β²))`` of independent entries, in nats.

    Args:
        mean: ``(..., r, r)``.
        std: ``(..., r, r)``.
        centre: the prior's mean, ``(r, r)``.
        prior_std: β.

    Returns:
        ``(...)``.
    """
    ratio, shift = std / prior_std, (mean - centre) / prior_std
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum((-2, -1))


class ContextualWeights(WeightDistribution):
    """Independent Gaussian matrices of tokens; their mean is the adapter's own network.

    Args:
        sites: the contexts of an adapter.
        prior_std: β.
        prior: the prior's mean: the identity, at which the adapter is plain LoRA, or zero.
        init_std: σ at the start.
        kl: ``text`` counts the divergence of a text in full; ``published`` multiplies it by
            10⁻⁶ over the number of sites.
        rate: learning rate of σ's part of the network.
    """

    has_kl = True

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        prior_std: float,
        prior: Literal["identity", "zero"],
        init_std: float,
        kl: Literal["text", "published"],
        rate: float,
    ) -> None:
        super().__init__(sites)
        self.prior_std, self.prior, self.rate = prior_std, prior, rate
        self.factor = 1.0 if kl == "text" else 1e-6 / len(self.sites)
        self.spreads = nn.ModuleDict()
        root = math.sqrt(init_std)
        for name, site in self.sites.items():
            spread = nn.Linear(site.weight.shape[1], site.weight.shape[0])
            with torch.no_grad():
                spread.weight.zero_()
                spread.bias.fill_(math.log(root / (1 - root)))
            self.spreads[key(name)] = spread.to(site.weight)
        self._divergences: dict[str, Tensor] = {}

    def own_rates(self) -> dict[str, float]:
        """Return the learning rate of every parameter."""
        return {name: self.rate for name, _ in self.named_parameters()}

    def context(self, site: str) -> Context:
        """Return the network at a site."""
        return self.sites[site].module  # pyright: ignore[reportReturnType]

    def std(self, site: str, u: Tensor) -> Tensor:
        """Return σ for ``u`` ``(..., r)``, ``(..., r, r)``."""
        root = self.spreads[key(site)](self.context(site).units(u)).sigmoid()
        return root.square().unflatten(-1, (u.shape[-1], u.shape[-1]))

    def value_std(self, std: Tensor, u: Tensor) -> Tensor:
        """Return the deviation of each entry of ``E u``, which are independent: ``(..., r)``.

        Var (E u)_i = Σ_j σ_ij² u_j²
        """
        variance = (std.square() @ u.square().unsqueeze(-1)).squeeze(-1)
        return variance.clamp_min(_LEAST).sqrt()

    def train_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Add every token's own noise, and take note of its divergence."""
        assert self.mask is not None
        _require_texts(site, x, self.mask.numel())
        std = self.std(site, x)
        centre = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
        mean = self.context(site).matrices(x)
        self._divergences[site] = matrix_kl(
            mean, std, centre if self.prior == "identity" else 0 * centre, self.prior_std
        )
        return out + self.value_std(std, x) * torch.randn_like(out)

    def kl(self) -> Tensor:
        """Return the divergence of a text, summed over its tokens and all sites, in nats.

        It is the mean over the texts of the last batch; padding does not count.
        """
        mask = self.mask
        if mask is None or not self._divergences:
            return torch.zeros(())
        tokens = torch.stack([d.view(mask.shape) for d in self._divergences.values()])  # (L, B, T)
        return self.factor * (tokens.sum(0) * mask).sum() / mask.shape[0]

    def after_step(self, step: int, total: int) -> None:
        """Let go of the last batch."""
        self._divergences.clear()

    def held_forward(self, site: str, x: Tensor, out: Tensor, held: Drawing) -> Tensor:
        """Add noise that is each text's and token's own, to the blocks after the first."""
        if not held.draws:
            return out
        assert held.mask is not None
        count, here = len(held.draws), held.mask.cpu()
        _require_texts(site, x, (1 + count if held.blocks else 1) * here.numel())
        u = x.reshape(-1, *here.shape, x.shape[-1])[-count:]  # (S, B, T, r)
        noise = torch.zeros(u.shape, dtype=u.dtype)
        for s, draw in enumerate(held.draws):
            for b, (text, tokens) in enumerate(zip(held.keys, here, strict=True)):
                random = generator(held.seed, draw, site, text)
                some = torch.randn(int(tokens.sum()), u.shape[-1], generator=random)
                noise[s, b, tokens] = some.to(noise)
        added = self.value_std(self.std(site, u), u) * noise.to(u)
        value = out.reshape(-1, *u.shape[1:])
        return torch.cat([value[:-count], value[-count:] + added]).view(out.shape)


def _require_texts(site: str, x: Tensor, tokens: int) -> None:
    """Raise ModelError where a map is fed something else than every token of the batch."""
    if x.shape[:-1].numel() != tokens:
        raise ModelError(
            f"C-LoRA needs every token of the batch at {site}, {tokens} of them, and got "
            f"{tuple(x.shape)}: the layer mixes positions of texts; adapt others."
        )
