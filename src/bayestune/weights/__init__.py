"""Distributions over the weights of an adapter, one per file."""

from __future__ import annotations

from bayestune.weights.contextual import ContextualWeights
from bayestune.weights.distribution import Drawing, WeightDistribution
from bayestune.weights.gaussian import GaussianWeights
from bayestune.weights.inducing import InducedWeights, Inducing
from bayestune.weights.site import Factor, Site, sites

__all__ = [
    "ContextualWeights",
    "Drawing",
    "Factor",
    "GaussianWeights",
    "InducedWeights",
    "Inducing",
    "Site",
    "WeightDistribution",
    "sites",
]
