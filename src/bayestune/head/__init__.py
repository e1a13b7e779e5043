"""Distributions over the last layer: modules that hold parameters and call `posterior`."""

from __future__ import annotations

from bayestune.head.gaussian import GaussianHead
from bayestune.head.generative import GenerativeHead
from bayestune.head.installation import install
from bayestune.head.linear import LinearHead
from bayestune.head.noise import Noise
from bayestune.head.ordinal import OrdinalHead

__all__ = ["GaussianHead", "GenerativeHead", "LinearHead", "Noise", "OrdinalHead", "install"]
