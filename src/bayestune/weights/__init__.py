"""Distributions over the weights of an adapter, one per file."""

from __future__ import annotations

from bayestune.weights.distribution import Drawing, WeightDistribution
from bayestune.weights.gaussian import GaussianWeights
from bayestune.weights.site import Factor, Site, sites
from bayestune.weights.swag import SwagWeights

__all__ = [
    "Drawing",
    "Factor",
    "GaussianWeights",
    "Site",
    "SwagWeights",
    "WeightDistribution",
    "sites",
]
