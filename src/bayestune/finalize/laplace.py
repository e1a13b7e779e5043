"""The Laplace refresh: the trained mean keeps its place and gets a covariance from the curvature.

At the trained mean W̄ with p = softmax(W̄φ) the class-block posterior is

    S_k = (τ I + Σ_n p_nk (1 − p_nk) φ_n φ_nᵀ)⁻¹

The Jensen bound over-shrinks the posterior along data directions (its stationary point has p̃ where
the curvature has p(1 − p)), which is why a refresh can still improve a variational posterior.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.finalize.features import Features
from bayestune.head import GaussianHead, OrdinalHead
from bayestune.posterior import laplace

logger = logging.getLogger(__name__)

#: Numbers in K · D² up to which ``auto`` keeps a dense covariance per class (134 MB in fp32).
BLOCK_LIMIT = 2**25

#: What ``finalize.refresh`` asks for by name; a point head, too, gets a covariance then.
REFRESHES = ("block", "eigen", "diagonal")

_ABSENT = -1e30


@dataclass(frozen=True)
class Curvature:
    """The curvature at a head's mean, measured once and good for every precision.

    Attributes:
        form: its exact diagonal ``(K, D)``, its diagonal in an eigenbasis, or the
            eigendecomposition of its class blocks.
    """

    form: Tensor | laplace.EigenCurvature | laplace.BlockSpectrum

    def variance(self, phi: Tensor, precision: float) -> Tensor:
        """Return the logit variances ``(B, K)`` of features ``(B, D)`` at a precision τ."""
        if not isinstance(self.form, Tensor):
            return self.form.variance(phi, precision)
        return phi.square() @ laplace.refresh_diagonal(self.form, precision).square().T

    def install(self, head: GaussianHead, precision: float) -> None:
        """Give the head the covariance at a precision τ."""
        if isinstance(self.form, laplace.BlockSpectrum):
            head.set_spread("dense", factor=self.form.factor(precision))
        elif isinstance(self.form, laplace.EigenCurvature):
            scale = self.form.scale(precision)
            head.set_spread("eigen", log_scale=scale.log(), basis=self.form.basis)
        else:
            scale = laplace.refresh_diagonal(self.form, precision)
            head.set_spread("diagonal", log_scale=scale.log())


def covariance_of(refresh: str, head: GaussianHead) -> str:
    """Return ``block``, ``eigen`` or ``diagonal`` for a recipe's ``finalize.refresh``.

    ``auto`` takes dense blocks while all of them hold at most `BLOCK_LIMIT` numbers, and one
    eigenbasis for all classes beyond that.
    """
    if refresh != "auto":
        return refresh
    numbers = head.num_classes * head.in_features**2
    if numbers <= BLOCK_LIMIT:
        return "block"
    logger.info(
        "the refresh keeps one eigenbasis for all classes: dense blocks of %d classes would take "
        "%.1f GB (finalize.refresh=block asks for them)",
        head.num_classes,
        4e-9 * numbers,
    )
    return "eigen"


@torch.no_grad()
def measure_curvature(
    head: GaussianHead | OrdinalHead, fit: Features, covariance: str
) -> Curvature:
    """Measure the curvature of the training likelihood at the head's mean.

    Args:
        head: its mean is where the curvature is taken.
        fit: training features.
        covariance: ``block``, ``eigen`` or ``diagonal``.
    """
    probs, weights = _predicted(head, fit)
    if covariance == "diagonal":
        return Curvature(laplace.diagonal_curvature(fit.phi, probs, weights))
    if covariance == "eigen":
        return Curvature(laplace.EigenCurvature.of(fit.phi, probs, weights))
    blocks = laplace.block_curvature(fit.phi, probs, weights)
    return Curvature(laplace.BlockSpectrum.of(blocks))


def _predicted(head: GaussianHead | OrdinalHead, fit: Features) -> tuple[Tensor, Tensor | None]:
    """Return probabilities ``(N, K)`` and weights ``(N,)`` of which ω p(1 − p) is the curvature."""
    if isinstance(head, OrdinalHead):
        # One row, whose curvature is no p(1 − p): it goes with the weights, as a multiple of ¼.
        weights = 4 * head.curvature(fit.phi, fit.labels)
        if fit.weights is not None:
            weights = weights * fit.weights
        return torch.full_like(weights, 0.5).unsqueeze(1), weights
    logits = head(fit.phi)
    if fit.mask is not None:
        logits = logits.masked_fill(~fit.mask, _ABSENT)
    return logits.softmax(dim=1), fit.weights
