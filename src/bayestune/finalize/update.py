"""New labelled rows for a posterior that is finished: the old one is their prior.

What was folded into the head since its posterior was found is taken out first and put back: the
temperature T, by which all logits are divided, and the factor s on trained deviations. In between
the head holds q(W) as its rows made it, and a new row counts as much as one of them did.

    trained      S⁻¹ = I/σ₀² + (1/κ) Σ c φφᵀ    the bound of the training, with its weight κ
    ascended     the same, with the κ that was chosen
    refreshed    S⁻¹ = τI + Σ p(1 − p) φφᵀ      a mode and its curvature: Laplace, κ = 1
    exact        Gaussian classes               counts, sums and squares are added
    numbers      S⁻¹ = τI + Σ r φφᵀ/σ²          exact given the noise, which stays as it was fitted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError
from bayestune.finalize.features import Features
from bayestune.finalize.options import rows_of
from bayestune.finalize.refresh import (
    Head,
    bound_of,
    log_likelihood,
    own_curvature,
    present,
)
from bayestune.head import GaussianHead, GenerativeHead, Noise
from bayestune.head.families import FAMILIES
from bayestune.posterior import ascend_around, curvature, eigen, joint, mode_around
from bayestune.posterior.conjugate import updated_mean

#: Rounds between the precisions of Student-t rows and the posterior, and what counts as settled.
_ROUNDS, _SETTLED = 200, 1e-10


@dataclass(frozen=True)
class Delivered:
    """How the posterior that a head holds came about, and what was folded into it since.

    Attributes:
        covariance: ``trained``, ``refreshed``, ``ascended`` or ``exact``.
        kappa: weight κ of the KL; a row counted 1/κ.
        scale: factor s on the deviations that were trained.
        temperature: T.
    """

    covariance: str
    kappa: float
    scale: float
    temperature: float

    @classmethod
    def of(cls, chosen: Mapping[str, Any]) -> Delivered:
        """Read it from what a training chose.

        Raises:
            ConfigError: if it does not say, or the rows counted without a prior beside them.
        """
        covariance, value = chosen.get("covariance"), chosen.get("value")
        kappas = {"trained": chosen.get("kl"), "ascended": value, "refreshed": 1.0, "exact": 1.0}
        kappa = kappas.get(str(covariance))
        if kappa is None:
            raise ConfigError(
                f"The posterior of the last layer is {covariance!r}; an update knows those that "
                f"are {', '.join(kappas)}. Train the model by fit (bayestune train)."
            )
        if kappa == 0:
            raise ConfigError(
                "The posterior was trained with train.kl=0, without a prior beside its rows: there "
                "is no weight at which a new row would count as they did. Train with a KL."
            )
        scale = float(value) if covariance == "trained" and value is not None else 1.0
        return cls(str(covariance), float(kappa), scale, float(chosen.get("temperature", 1.0)))


@torch.no_grad()
def update_head(head: nn.Module, rows: Features, delivered: Delivered) -> None:
    """Make a head's posterior that of its rows so far and some more.

    Args:
        head: changed in place; `GaussianHead`, `OrdinalHead` with a distribution, `GenerativeHead`.
        rows: new rows, on the head's device.
        delivered: what its posterior is.
    """
    if isinstance(head, GenerativeHead):
        with _as_found(head, delivered):
            head.absorb(rows.phi, rows.labels, rows.weights)
        return
    gaussian = rows_of(head)  # pyright: ignore[reportArgumentType]
    with _as_found(head, delivered):
        family = FAMILIES[gaussian.family]
        spread, mean = _wide(gaussian.spread), gaussian.weight.double()
        wide = _wide_rows(rows)
        if gaussian.noise is not None:
            mean, spread = _numbers(gaussian, gaussian.noise, wide, mean, spread, delivered.kappa)
        elif delivered.covariance == "refreshed":
            mean, spread = _laplace(head, wide, mean, spread)  # pyright: ignore
        else:
            found = ascend_around(
                wide.phi,
                wide.labels,
                mean,
                family.posterior,
                spread,
                bound_of(head),  # pyright: ignore[reportArgumentType]
                kappa=delivered.kappa,
                weights=wide.weights,
                mask=wide.mask,
            )
            mean, spread = found.mean, found.spread
        gaussian.weight.copy_(mean)
        gaussian.set_spread(gaussian.family, **family.tensors(spread))


def _laplace(head: Head, rows: Features, mean: Tensor, spread: Any) -> tuple[Tensor, Any]:
    """Return mean and spread of the Laplace approximation around the new mode."""
    name = rows_of(head).family
    family = FAMILIES[name].posterior

    def likelihood(logits: Tensor) -> Tensor:
        return log_likelihood(head, logits, rows)

    def unwhiten(u: Tensor) -> Tensor:
        return family.unwhiten(spread, u)

    start = torch.zeros_like(mean)
    mean = mean + unwhiten(mode_around(rows.phi, start, mean, unwhiten, likelihood))
    logits = rows.phi @ mean.T
    if name not in ("joint", "coupled"):
        return mean, family.absorb(spread, rows.phi, own_curvature(head, logits, rows))
    probs = present(logits, rows).softmax(1)
    if name == "joint":
        return mean, joint.absorb(spread, curvature.full(rows.phi, probs, rows.weights))
    own = curvature.along(probs, spread.classes, rows.weights)
    return mean, eigen.absorb(spread, rows.phi, own)


def _numbers(
    head: GaussianHead, noise: Noise, rows: Features, mean: Tensor, spread: Any, kappa: float
) -> tuple[Tensor, Any]:
    """Return mean and spread of a linear regression; of Student-t rows by their precisions."""
    family = FAMILIES[head.family].posterior
    eye = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    root = family.unwhiten(spread, eye[:, None])[:, 0].T  # (D, D)
    level, y = (2 * noise.log_scale.double()).exp(), rows.labels
    found, after = mean, spread
    for _ in range(_ROUNDS):
        mu, var = family.logit_moments(rows.phi, found, after)
        precision = noise.row_weights(rows.phi, mu, var, y).double() / (level * kappa)  # (N, 1)
        before = found
        moved = updated_mean(rows.phi, y[:, 0], precision[:, 0], mean[0], root)
        found, after = moved[None], family.absorb(spread, rows.phi, precision)
        if (rows.phi @ (found - before).T).abs().max() <= _SETTLED * level.sqrt():
            break
    return found, after


@contextmanager
def _as_found(head: Any, delivered: Delivered) -> Iterator[None]:
    """Take out of a head what was folded into it, for a while."""
    head.fold_temperature(1 / delivered.temperature)
    if delivered.scale != 1:
        rows_of(head).scale_spread(1 / delivered.scale)
    yield
    if delivered.scale != 1:
        rows_of(head).scale_spread(delivered.scale)
    head.fold_temperature(delivered.temperature)


def _wide(spread: Any) -> Any:
    """Return a spread in float64."""
    if isinstance(spread, Tensor):
        return spread.double()
    return type(spread)(*(t if t is None else t.double() for t in spread))


def _wide_rows(rows: Features) -> Features:
    labels = rows.labels.double() if rows.labels.is_floating_point() else rows.labels
    weights = None if rows.weights is None else rows.weights.double()
    return Features(rows.phi.double(), labels, rows.mask, weights, rows.unit)
