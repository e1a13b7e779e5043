"""A point with a Gaussian prior: what MAP optimises."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayestune.weights.distribution import WeightDistribution
from bayestune.weights.site import Site


class PointWeights(WeightDistribution):
    """Weights that are a point under the prior N(0, σ_p²); nothing is random.

    Args:
        sites: where the prior acts.
        prior_std: σ_p.
    """

    has_kl = True
    is_random = False
    passes = "1"

    def __init__(self, sites: Mapping[str, Site], *, prior_std: float) -> None:
        super().__init__(sites)
        self.prior_std = prior_std

    def kl(self) -> Tensor:
        """Return ``Σ θ² / 2σ_p²``, minus the log prior up to a constant, in nats."""
        squares = [site.weight.square().sum() for site in self.sites.values()]
        return torch.stack(squares).sum() / (2 * self.prior_std**2)
