"""Members of an ensemble: one point for each training, all with the same weight.

Source: Lakshminarayanan et al. 2017 (arXiv 1612.01474).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.site import Site


class MemberWeights(WeightDistribution):
    """M points in the space of adapter and head; draw m is member m.

    The adapter itself is the first member, which is also what no draws at all give: members from
    different starts have no mean.

    Args:
        sites: all that is trained: LoRA's factors and the head.
        members: M.
    """

    passes = "1 + M through the adapted layers, of M trainings"

    def __init__(self, sites: Mapping[str, Site], *, members: int) -> None:
        super().__init__(sites)
        self.members = self.default_draws = members
        for name, site in self.sites.items():
            kept = site.weight.detach().expand(members, *site.weight.shape).clone()
            self.register_buffer(key(name), kept)

    @torch.no_grad()
    def keep(self, member: int) -> None:
        """Keep the weights as they are as one member."""
        for name, site in self.sites.items():
            self.get_buffer(key(name))[member] = site.weight

    @torch.no_grad()
    def put(self, member: int) -> None:
        """Make the weights those of a member."""
        for name, site in self.sites.items():
            site.weight.copy_(self.get_buffer(key(name))[member])

    def start(self) -> None:
        """Draw the adapter's start anew, from torch's global generator."""
        for layer in {id(s.layer): s.layer for s in self.sites.values() if s.layer}.values():
            layer.reset_lora_parameters("default", True)

    def deviations(self, site: str, draws: Sequence[int], seed: int) -> Tensor:
        """Return members minus the first, ``(S, out, in)``."""
        return self.get_buffer(key(site))[list(draws)] - self.sites[site].weight.detach()

    def count(self, samples: int | str) -> int:
        """Return how many members predict: all of them, or the first few."""
        return min(super().count(samples), self.members)

    def settle(self) -> dict[str, Any]:
        """Leave the first member in the adapter."""
        self.put(0)
        return {"members": self.members}

    @torch.no_grad()
    def fold_temperature(self, temperature: float) -> None:
        """Divide the head of every member by T."""
        for name, site in self.sites.items():
            if site.layer is None:
                self.get_buffer(key(name)).div_(temperature)
