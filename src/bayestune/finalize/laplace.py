"""The Laplace refresh: the trained mean keeps its place and gets a covariance from the curvature.

At the trained mean W̄ with p = softmax(W̄φ) the class-block posterior is

    S_k = (τ I + Σ_n p_nk (1 − p_nk) φ_n φ_nᵀ)⁻¹

The Jensen bound over-shrinks the posterior along data directions (its stationary point has p̃ where
the curvature has p(1 − p)), which is why a refresh can still improve a variational posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.finalize.features import Features
from bayestune.finalize.temperature import fit_temperature, held_out_nll, predictive_at
from bayestune.head import GaussianHead
from bayestune.posterior import laplace

#: Precisions tried, in units of the prior's own precision 1/σ₀².
PRECISIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: Numbers in K · D² up to which the refresh keeps a dense covariance per class (67 MB in fp32).
BLOCK_LIMIT = 2**24


@dataclass(frozen=True)
class Candidate:
    """One posterior that was tried.

    Attributes:
        precision: τ in units of the prior's precision; None for the posterior as trained.
        temperature: fitted (or given) T.
        nll: held-out negative log-likelihood in nats at T.
    """

    precision: float | None
    temperature: float
    nll: float


def covariance_of(refresh: str, head: GaussianHead) -> str:
    """Return ``block`` or ``diagonal`` for a recipe's ``finalize.refresh``.

    ``auto`` takes dense blocks while all of them hold at most `BLOCK_LIMIT` numbers.
    """
    if refresh != "auto":
        return refresh
    return "block" if head.num_classes * head.in_features**2 <= BLOCK_LIMIT else "diagonal"


def curvature_variance(
    head: GaussianHead, fit: Features, covariance: str
) -> tuple[Callable[[Tensor, float], Tensor], Callable[[float], Tensor]]:
    """Measure the curvature at the head's mean once, for any precision.

    Args:
        head: the head; its mean is where the curvature is taken.
        fit: training features.
        covariance: ``block`` or ``diagonal``.

    Returns:
        A function of features ``(B, D)`` and τ that gives logit variances ``(B, K)``, and a
        function of τ that gives the covariance factor ``(K, D, D)`` or scale ``(K, D)``.
    """
    with torch.no_grad():
        logits = head(fit.phi)
        if fit.mask is not None:
            logits = logits.masked_fill(~fit.mask, -1e30)
        probs = logits.softmax(dim=1)
        if covariance == "diagonal":
            diagonal = laplace.diagonal_curvature(fit.phi, probs, fit.weights)
            return (
                lambda phi, tau: phi.square() @ laplace.refresh_diagonal(diagonal, tau).square().T,
                lambda tau: laplace.refresh_diagonal(diagonal, tau),
            )
        spectrum = laplace.BlockSpectrum.of(laplace.block_curvature(fit.phi, probs, fit.weights))
        return spectrum.variance, spectrum.factor


def refresh(
    head: GaussianHead,
    fit: Features,
    held_out: Features | None,
    *,
    mode: str,
    precision: float | str,
    temperature: float | str,
) -> tuple[list[Candidate], Candidate]:
    """Replace the head's covariance by the Laplace one where that serves held-out likelihood.

    With ``mode="auto"`` the refreshed posterior is taken unless the posterior as trained is more
    likely on held-out rows by more than one standard error of the paired difference: at equal
    likelihood the refresh tells unfamiliar inputs better. A given mode always refreshes.

    Args:
        head: changed in place.
        fit: training features.
        held_out: rows the choice is made on; may be None where nothing is left to choose.
        mode: ``auto``, ``block`` or ``diagonal``.
        precision: τ in units of the prior's precision, or ``auto``.
        temperature: T, ``none`` or ``auto``.

    Returns:
        All candidates, and the one the head now has (its temperature is not folded in yet).

    Raises:
        ConfigError: if something is to be chosen and nothing is held out.
    """
    if held_out is None and "auto" in (precision, temperature):
        raise ConfigError(
            "finalize.precision and finalize.temperature are chosen on held-out rows: give a "
            "validation set, train.hold_out above 0, or numbers for both."
        )
    covariance = covariance_of(mode, head)
    variance, factor = curvature_variance(head, fit, covariance)
    unit = float(torch.exp(-head.log_prior_variance))
    grid: Sequence[float] = PRECISIONS if precision == "auto" else (float(precision),)
    if held_out is None:
        best = Candidate(
            grid[0], 1.0 if temperature == "none" else float(temperature), float("nan")
        )
        _install(head, covariance, factor(grid[0] * unit))
        return [best], best

    with torch.no_grad():
        mu, var = head.moments(held_out.phi)
    variances: dict[float | None, Tensor] = {None: var}
    variances |= {tau: variance(held_out.phi, tau * unit) for tau in grid}
    tried = [_score(mu, v, held_out, tau, temperature) for tau, v in variances.items()]
    trained, refreshed = tried[0], min(tried[1:], key=lambda c: c.nll)
    if mode == "auto" and trained.nll < refreshed.nll:
        losses = [
            _item_losses(mu, variances[c.precision], held_out, c.temperature)
            for c in (refreshed, trained)
        ]
        excess = losses[0] - losses[1]
        if float(excess.mean()) > float(excess.std() / len(excess) ** 0.5):
            return tried, trained
    _install(head, covariance, factor(float(refreshed.precision or 0) * unit))
    return tried, refreshed


def _install(head: GaussianHead, covariance: str, spread: Tensor) -> None:
    if covariance == "block":
        head.set_dense(spread)
    else:
        head.set_diagonal(spread)


def _score(
    mu: Tensor, var: Tensor, rows: Features, precision: float | None, temperature: float | str
) -> Candidate:
    if temperature == "auto":
        return Candidate(precision, *fit_temperature(mu, var, rows.labels, rows.mask))
    fixed = 1.0 if temperature == "none" else float(temperature)
    probs = predictive_at(mu, var, fixed, rows.mask).probs
    return Candidate(precision, fixed, held_out_nll(probs, rows.labels))


def _item_losses(mu: Tensor, var: Tensor, rows: Features, temperature: float) -> Tensor:
    probs = predictive_at(mu, var, temperature, rows.mask).probs.double()
    return -probs.gather(1, rows.labels[:, None]).clamp_min(1e-300).log().flatten()  # (N,)
