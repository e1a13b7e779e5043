"""Distributions over the weights of an adapter, one per file."""

from __future__ import annotations

from bayestune.weights.contextual import ContextualWeights
from bayestune.weights.distribution import (
    Drawing,
    MixedRowsError,
    WeightDistribution,
    distribution_of,
)
from bayestune.weights.dropout import DropoutWeights, dropout_sites
from bayestune.weights.gaussian import GaussianWeights
from bayestune.weights.inducing import InducedWeights, Inducing
from bayestune.weights.isotropic import IsotropicWeights
from bayestune.weights.ivon import IvonWeights
from bayestune.weights.laplace import LaplaceWeights
from bayestune.weights.members import MemberWeights
from bayestune.weights.point import PointWeights
from bayestune.weights.scaled import ScaledWeights
from bayestune.weights.site import Factor, Site, head_site, sites
from bayestune.weights.spread import spread
from bayestune.weights.swag import SwagWeights

__all__ = [
    "ContextualWeights",
    "Drawing",
    "DropoutWeights",
    "Factor",
    "GaussianWeights",
    "InducedWeights",
    "Inducing",
    "IsotropicWeights",
    "IvonWeights",
    "LaplaceWeights",
    "MemberWeights",
    "MixedRowsError",
    "PointWeights",
    "ScaledWeights",
    "Site",
    "SwagWeights",
    "WeightDistribution",
    "distribution_of",
    "dropout_sites",
    "head_site",
    "sites",
    "spread",
]
