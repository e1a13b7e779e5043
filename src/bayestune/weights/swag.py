"""A Gaussian fitted to the path of training: the posterior of SWAG.

    θ̄ = mean of the snapshots,   Σ = ½ diag(mean of θ² − θ̄²) + ½ D Dᵀ / (K − 1)

D holds the last K deviations of a snapshot from the running mean. A draw takes one z₂ for all
weights, which is what makes the low-rank part correlate layers:

    θ = θ̄ + √scale · ( (1/√2) σ ∘ z₁ + D z₂ / √(2(K − 1)) )

Source: Maddox et al. 2019 (arXiv 1902.02476), algorithm 1; for LoRA Onal et al. 2024 (arXiv
2405.03425). Their implementation leaves both factors ½ out, which is ``scale=2`` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError
from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.noise import generator
from bayestune.weights.site import Site
from bayestune.weights.spread import spread


class Trajectory(nn.Module):
    """Running moments of one weight, and its last deviations from the running mean.

    The second moment is kept about the mean: ``mean(θ²) − mean(θ)²`` would lose in float32 what a
    weight moves by, which is little beside its size.

    Args:
        weight: the weight, ``(out, in)``.
        columns: K.

    Attributes:
        count: snapshots so far, a scalar.
        mean: θ̄, ``(out, in)``.
        scatter: Σ (θ − θ̄)² over the snapshots, ``(out, in)``.
        columns: D, ``(K, out, in)``; zeros where nothing was collected yet.

    Source: Welford 1962 for the update.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    columns: Tensor

    def __init__(self, weight: Tensor, columns: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), device=weight.device))
        self.register_buffer("mean", torch.zeros_like(weight, requires_grad=False))
        self.register_buffer("scatter", torch.zeros_like(weight, requires_grad=False))
        self.register_buffer("columns", weight.new_zeros(columns, *weight.shape))

    def clear(self) -> None:
        """Forget all snapshots."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def add(self, weight: Tensor) -> None:
        """Take in a snapshot ``(out, in)``."""
        slot = int(self.count) % len(self.columns)
        self.count += 1
        before = weight - self.mean
        self.mean += before / self.count
        after = weight - self.mean
        self.scatter += before * after
        self.columns[slot] = after

    @property
    def variance(self) -> Tensor:
        """The variance over all snapshots, ``mean(θ²) − θ̄²``, ``(out, in)``."""
        return self.scatter / self.count.clamp_min(1)

    @property
    def factor(self) -> Tensor:
        """The columns of D / √(K − 1), K being those collected, ``(K, out, in)``."""
        collected = self.count.clamp_max(len(self.columns))
        return self.columns / (collected - 1).clamp_min(1).sqrt()

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply all deviations by a factor."""
        self.scatter *= factor**2
        self.columns *= factor


class SwagWeights(WeightDistribution):
    """The Gaussian of SWAG over all sites at once.

    Args:
        sites: where.
        start: share of the steps after which snapshots begin.
        snapshots: how many are taken, evenly spaced to the last step.
        columns: K.
        scale: factor on the covariance; 1 is the paper's.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        start: float,
        snapshots: int,
        columns: int,
        scale: float,
    ) -> None:
        super().__init__(sites)
        self.start, self.snapshots, self.scale = start, snapshots, scale
        self.paths = nn.ModuleDict(
            {key(name): Trajectory(site.weight, columns) for name, site in sites.items()}
        )

    def path(self, site: str) -> Trajectory:
        """Return the running moments of a site."""
        return self.paths[key(site)]  # pyright: ignore[reportReturnType]

    @property
    def collected(self) -> int:
        """The number of snapshots so far."""
        return int(self.path(next(iter(self.sites))).count)

    def deviations(self, site: str, draws: Sequence[int], seed: int) -> Tensor:
        """Return deviations from the mean ``(S, out, in)``; z₂ is the same for all sites."""
        path = self.path(site)
        std, factor = path.variance.sqrt(), path.factor
        each: list[Tensor] = []
        for s in draws:
            z1 = torch.randn(std.shape, generator=generator(seed, s, site)).to(std)
            z2 = torch.randn(len(factor), generator=generator(seed, s)).to(std)
            each.append(std * z1 + torch.tensordot(z2, factor, 1))
        return (self.scale / 2) ** 0.5 * torch.stack(each)

    def std(self, site: str) -> Tensor:
        """Return the standard deviations of a site's weights, ``(out, in)``."""
        path = self.path(site)
        return (self.scale / 2 * (path.variance + path.factor.square().sum(0))).sqrt()

    def require_steps(self, total: int) -> None:
        """Raise ConfigError where there would be fewer than two snapshots."""
        left = total - int(self.start * total)
        if min(self.snapshots, left) < 2:
            raise ConfigError(
                f"weights.start={self.start:g} leaves {left} of {total} steps; SWAG needs two "
                "snapshots or more: lower it, or train for more epochs."
            )

    def after_step(self, step: int, total: int) -> None:
        """Take a snapshot where one is due."""
        first = int(self.start * total)
        if step == 1:
            for site in self.sites:
                self.path(site).clear()
        if _due(step - first, total - first, self.snapshots):
            for name, site in self.sites.items():
                self.path(name).add(site.weight)

    @torch.no_grad()
    def take_mean(self) -> None:
        """Write the mean θ̄ into the weights."""
        for name, site in self.sites.items():
            site.weight.copy_(self.path(name).mean)

    def settle(self) -> dict[str, Any]:
        """Write the mean into the weights; return of how many snapshots, and how far they lie."""
        self.take_mean()
        return {"snapshots": self.collected, "std": spread(self.std, self.sites)}

    def fold_temperature(self, temperature: float) -> None:
        """Divide the deviations of the head by T, as its mean was."""
        for name, site in self.sites.items():
            if site.layer is None:
                self.path(name).rescale(1 / temperature)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that defines q beside its mean, which the weights are."""
        return {k: v for k, v in super().tensors().items() if not k.endswith(".mean")}


def _due(step: int, steps: int, snapshots: int) -> bool:
    """Return whether the last of ``step`` steps completes another of equal parts of ``steps``."""
    return step > 0 and step * snapshots // steps > (step - 1) * snapshots // steps
