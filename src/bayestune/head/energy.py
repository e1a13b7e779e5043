"""The mean energy E‖h‖² of training features, and all that a head sets by it.

Backbones differ in the scale and in the dimension of their features by orders of magnitude. Stated
through the energy, a prior, an initialisation and a step size mean the same on all of them:

    prior variance        σ₀² = 2 · prior_scale · max(1, ln K) / E‖h‖²
    initial deviation     s   = init_scale / √E‖h‖²
    factor on Adam's lr   √(D / E‖h‖²)

so that at a typical input a logit has prior variance 2 · prior_scale · max(1, ln K) and initial
standard deviation init_scale. The prior grows with ln K because the share of the maximal entropy
ln K that a softmax of K independent N(0, v) logits keeps depends on v / ln K alone when K is large:
v = 2 ln K is the freezing point of Derrida's random energy model, where draws turn from spread over
all classes to concentrated on a few, and the prior holds both for possible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayestune.errors import ModelError, NumericsError


def measure(h_or_value: Tensor | float) -> float:
    """Return E‖h‖², averaged over features or checked where it is given.

    Args:
        h_or_value: features ``(N, D)`` or with more leading dimensions, or the energy itself.

    Returns:
        The energy, positive and finite.

    Raises:
        NumericsError: the energy is zero, negative, NaN or infinite.
    """
    value = torch.as_tensor(h_or_value)
    if value.ndim:
        value = value.double().square().sum(-1).mean()
    energy = float(value)
    if not 0 < energy < math.inf:
        raise NumericsError(
            f"The feature energy E‖h‖² is {energy}; it must be positive and finite. "
            "Check that the features are not all zero, NaN or infinite."
        )
    return energy


def known(energy: Tensor) -> float:
    """Return a measured energy, where NaN stands for one that never was.

    Raises:
        ModelError: the energy was never measured.
    """
    value = float(energy)
    if math.isnan(value):
        raise ModelError(
            "The feature energy E‖h‖² of the head is unknown. Call "
            "head.set_feature_energy(features) with training features before training."
        )
    return value


def prior_variance(energy: float, num_classes: int, prior_scale: float) -> float:
    """Return σ₀² = 2 · prior_scale · max(1, ln K) / E‖h‖²."""
    return 2 * prior_scale * max(1.0, math.log(num_classes)) / energy


def initial_scale(energy: float, init_scale: float) -> float:
    """Return the initial standard deviation init_scale / √E‖h‖² of every weight."""
    return init_scale / math.sqrt(energy)


def lr_factor(energy: float, in_features: int) -> float:
    """Return √(D / E‖h‖²), what a step of weights on features of unit mean square is in raw units.

    Adam moves every coordinate by about one learning rate in absolute units, however large the
    features are; the factor makes a step change the logits alike on every backbone.
    """
    return math.sqrt(in_features / energy)
