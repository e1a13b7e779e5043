"""Scores of predicted numbers: errors of the mean, and proper scores of the distribution.

A prediction is Gaussian, or Student-t with ν > 2 degrees of freedom; either is given by its mean
and its standard deviation, never by a variance or by the scale of the t distribution.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError
from bayestune.metrics.inputs import ArrayLike, as_vector, same_rows

_NODES = 64


def squared_error(mean: ArrayLike, targets: ArrayLike) -> Tensor:
    """Return (y − μ)² of each row, float64 ``(N,)``; the RMSE is the root of its mean.

    Args:
        mean: predicted means, (N,).
        targets: numbers, (N,).

    Raises:
        DataError: if the rows do not match or are not finite.
    """
    return _residual(mean, targets).square()


def absolute_error(mean: ArrayLike, targets: ArrayLike) -> Tensor:
    """Return |y − μ| of each row, float64 ``(N,)``; see `squared_error`."""
    return _residual(mean, targets).abs()


def regression_nll(
    mean: ArrayLike, std: ArrayLike, targets: ArrayLike, dof: ArrayLike | float | None = None
) -> Tensor:
    """Return the negative log density of each target in nats.

    The density has the unit of 1/y: in metres it is smaller than in kilometres by log 1000 nats.

    Args:
        mean: predicted means, (N,).
        std: predicted standard deviations, (N,).
        targets: numbers, (N,).
        dof: degrees of freedom of a Student-t, one or (N,); None for a Gaussian.

    Returns:
        float64 ``(N,)``.

    Raises:
        DataError: if the rows do not match, are not finite, or a deviation is not positive.
        ConfigError: if ``dof`` is not above 2.
    """
    z, scale, nu = _standardised(mean, std, targets, dof)
    return scale.log() - _log_density(z, nu)


def crps(
    mean: ArrayLike, std: ArrayLike, targets: ArrayLike, dof: ArrayLike | float | None = None
) -> Tensor:
    """Return the continuous ranked probability score of each row, in the unit of the numbers.

        CRPS(F, y) = ∫ (F(x) − [x ≥ y])² dx = E|Y − y| − ½ E|Y − Y'|
        Gaussian:   σ [ z(2Φ(z) − 1) + 2φ(z) − 1/√π ]
        Student-t:  s [ z(2F(z) − 1) + 2f(z)(ν + z²)/(ν − 1)
                        − 2√ν/(ν − 1) · B(½, ν − ½)/B(½, ½ν)² ]

    Lower is better; for a point it is the absolute error.

    Args:
        mean: predicted means, (N,).
        std: predicted standard deviations, (N,).
        targets: numbers, (N,).
        dof: degrees of freedom of a Student-t, one or (N,); None for a Gaussian.

    Returns:
        float64 ``(N,)``.

    Raises:
        DataError: if the rows do not match, are not finite, or a deviation is not positive.
        ConfigError: if ``dof`` is not above 2.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation",
    eq. 21; Jordan, Krüger and Lerch 2019, "Evaluating probabilistic forecasts with scoringRules",
    appendix A.2.
    """
    z, scale, nu = _standardised(mean, std, targets, dof)
    spread, constant = 2 * _log_density(z, nu).exp(), 1 / math.sqrt(math.pi)
    if nu is not None:
        spread = spread * (nu + z.square()) / (nu - 1)
        constant = 2 * nu.sqrt() / (nu - 1) * (_log_beta(nu - 0.5) - 2 * _log_beta(0.5 * nu)).exp()
    return scale * (z.abs() * _central(z.abs(), nu) + spread - constant)


def inside_interval(
    mean: ArrayLike,
    std: ArrayLike,
    targets: ArrayLike,
    level: float = 0.9,
    dof: ArrayLike | float | None = None,
) -> Tensor:
    """Return whether each target lies in the central interval of a probability.

    Args:
        mean: predicted means, (N,).
        std: predicted standard deviations, (N,).
        targets: numbers, (N,).
        level: probability of the interval, in (0, 1).
        dof: degrees of freedom of a Student-t, one or (N,); None for a Gaussian.

    Returns:
        Zeros and ones, float64 ``(N,)``; their mean is the coverage.

    Raises:
        DataError: if the rows do not match, are not finite, or a deviation is not positive.
        ConfigError: if ``level`` or ``dof`` is out of range.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level = {level!r} given, expected a probability above 0 and below 1.")
    z, _, nu = _standardised(mean, std, targets, dof)
    return (_central(z.abs(), nu) <= level).double()


def _residual(mean: ArrayLike, targets: ArrayLike) -> Tensor:
    mu, y = as_vector(mean, "mean"), as_vector(targets, "targets")
    same_rows(mu, y, "mean", "targets")
    return y - mu


def _standardised(
    mean: ArrayLike, std: ArrayLike, targets: ArrayLike, dof: ArrayLike | float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return residuals in units of the scale, the scales, and the degrees of freedom."""
    residual, scale = _residual(mean, targets), as_vector(std, "std")
    same_rows(residual, scale, "targets", "std")
    if bool((scale <= 0).any()):
        row = int(torch.nonzero(scale <= 0)[0])
        raise DataError(f"std: row {row} is {scale[row].item()}, expected a positive number.")
    if dof is None:
        return residual / scale, scale, None
    nu = as_vector([dof] if isinstance(dof, int | float) else dof, "dof")
    if bool((nu <= 2).any()):
        raise ConfigError(f"dof = {float(nu.min())!r} given, expected numbers above 2, or None.")
    if len(nu) > 1:
        same_rows(residual, nu, "targets", "dof")
    scale = scale * ((nu - 2) / nu).sqrt()
    return residual / scale, scale, nu


def _log_density(z: Tensor, nu: Tensor | None) -> Tensor:
    if nu is None:
        return -0.5 * (z.square() + math.log(2 * math.pi))
    tail = 0.5 * (nu + 1) * torch.log1p(z.square() / nu)
    return -0.5 * nu.log() - _log_beta(0.5 * nu) - tail


def _central(z: Tensor, nu: Tensor | None) -> Tensor:
    """Return the probability 2F(z) − 1 between −z and z, for z ≥ 0."""
    if nu is None:
        return torch.erf(z / math.sqrt(2))
    # With z = √ν tan u the density is cos^(ν−1) u du / B(½, ½ν); beyond the largest u it is less
    # than e⁻⁴⁰ of its peak.
    largest = torch.acos(torch.exp(-40 / (nu - 1)))
    end = torch.minimum(torch.atan(z / nu.sqrt()), largest)
    nodes, weights = _legendre()
    u = 0.5 * end[:, None] * (nodes + 1)  # (N, nodes)
    integral = 0.5 * end * (u.cos().pow((nu - 1)[:, None]) @ weights)
    return (2 * integral * torch.exp(-_log_beta(0.5 * nu))).clamp_max(1)


@cache
def _legendre() -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _log_beta(b: Tensor) -> Tensor:
    """Return log B(½, b)."""
    return math.lgamma(0.5) + torch.lgamma(b) - torch.lgamma(b + 0.5)
