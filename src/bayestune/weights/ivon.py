"""A diagonal Gaussian that the optimiser itself learns: the posterior of IVON.

    q = N(m, σ²),   1/σ² = λ (h + δ),   λ = N/κ,   λδ = 1/σ_p²

h is the expected curvature of the mean loss; see `optim.Ivon`, which draws the weights of a step
and moves m and h. Here σ is kept with the model, for predictions and for the epoch that is kept.

Source: Shen et al. 2024 (arXiv 2402.17641); on LoRA Cong et al. 2024 (arXiv 2411.04421).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayestune.head import LinearHead, energy
from bayestune.optim import Ivon
from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.site import Site
from bayestune.weights.spread import spread


class IvonWeights(WeightDistribution):
    """The Gaussian that IVON learns over all that is trained.

    The adapter's prior and start are given per weight. Those of the head are given per logit, as
    those of other heads are: how large features are is the backbone's choice.

    Args:
        sites: where; all that is trained.
        prior_std: σ_p of the adapter's weights.
        init_std: σ₀ of the adapter's weights, at the start.
        prior_scale: variance of a logit under the head's prior, over 2 · max(1, ln K).
        init_scale: standard deviation of a logit at the start.
        beta2: β₂ of the curvature.
        clip: share of σ₀ at which a preconditioned gradient moves a weight by the full rate.
        ess: λ; None for N/κ.
    """

    has_kl = True
    steps_itself = True

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        prior_std: float,
        init_std: float,
        prior_scale: float,
        init_scale: float,
        beta2: float,
        clip: float,
        ess: float | None,
    ) -> None:
        super().__init__(sites)
        self.prior_std, self.init_std = prior_std, init_std
        self.prior_scale, self.init_scale = prior_scale, init_scale
        self.beta2, self.clip, self.ess = beta2, clip, ess
        for name, site in self.sites.items():
            self.register_buffer(key(name), torch.zeros_like(site.weight, requires_grad=False))

    def std(self, site: str) -> Tensor:
        """Return σ of a site, ``(out, in)``; zeros before any training."""
        return self.get_buffer(key(site))

    def draw(self, site: str, random: torch.Generator) -> Tensor:
        """Return ``σ ∘ ε``, ``(out, in)``."""
        std = self.std(site)
        return std * torch.randn(std.shape, generator=random, dtype=std.dtype).to(std.device)

    def scales(self, site: str) -> tuple[float, float]:
        """Return σ_p and σ₀ of a site."""
        head = self.sites[site].module
        if not isinstance(head, LinearHead):
            return self.prior_std, self.init_std
        measured = energy.known(head.feature_energy)
        variance = energy.prior_variance(measured, head.num_classes, self.prior_scale)
        return variance**0.5, energy.initial_scale(measured, self.init_scale)

    def optimizer(self, groups: Iterable[dict[str, Any]], kl_weight: float) -> Ivon:
        """Return the optimiser of some of the weights; σ follows it after every step.

        With ξ = clip · σ₀ and lr/ξ for a learning rate no weight moves by more than ``lr`` in a
        step, the meaning that a rate has for Adam.
        """
        ess = 1 / kl_weight if self.ess is None else self.ess
        of = {id(site.weight): name for name, site in self.sites.items()}
        own: list[dict[str, Any]] = []
        for group in groups:
            stds = [self.std(of[id(p)]) for p in group["params"]]
            prior, start = self.scales(of[id(group["params"][0])])
            radius, decay = self.clip * start, 1 / (ess * prior**2)
            options = {"hess_init": 1 / (ess * start**2) - decay, "weight_decay": decay}
            own.append({**group, **options, "lr": group["lr"] / radius, "clip_radius": radius})
            for std in stds:
                if not std.any():  # else a training is continued
                    std.fill_(start)
        optimizer = Ivon(own, 1.0, ess, betas=(0.9, self.beta2), rescale_lr=False)

        def follow(*_: Any) -> None:
            for p, std in optimizer.deviations().items():
                self.std(of[id(p)]).copy_(std)

        optimizer.register_step_post_hook(follow)
        return optimizer

    def kl(self) -> Tensor:
        """Return KL(q ‖ prior) in nats; while training, an unbiased estimate from the draw held.

        E θ² is m² + σ², so that the draw itself stands for both.
        """
        each: list[Tensor] = []
        for name, site in self.sites.items():
            std, (prior, _) = self.std(name), self.scales(name)
            square = site.weight.detach().square()
            if not self.training:
                square = square + std.square()
            each.append(((prior / std).log() + (square / prior**2 - 1) / 2).sum())
        return torch.stack(each).sum()

    def curvature(self) -> dict[str, float]:
        """Return the mean of h/h₀ over the adapter's weights and over the head's.

        h/h₀ = (1/σ² − 1/σ_p²) / (1/σ₀² − 1/σ_p²), 1 where the curvature never left its start.
        """
        found: dict[str, list[Tensor]] = {}
        for name, site in self.sites.items():
            prior, start = self.scales(name)
            ratio = (self.std(name).double() ** -2 - prior**-2) / (start**-2 - prior**-2)
            part = "adapter" if site.layer is not None else "head"
            found.setdefault(part, []).append(ratio.flatten())
        return {part: float(torch.cat(each).mean()) for part, each in found.items()}

    def settle(self) -> dict[str, Any]:
        """Return how far the curvature has moved, as h/h₀, and the deviations that came of it."""
        return {"curvature": self.curvature(), "std": spread(self.std, self.sites)}

    def fold_temperature(self, temperature: float) -> None:
        """Divide the deviations of the head by T, as its mean was."""
        for name, site in self.sites.items():
            if site.layer is None:
                self.std(name).div_(temperature)
