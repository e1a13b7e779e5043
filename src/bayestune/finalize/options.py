"""The posteriors that a finaliser can deliver, each measured when its turn comes.

``trained``: the covariance of the training at several scales. ``refreshed``: a Laplace covariance
at several precisions, or at the one whose mode has the most evidence, around the trained mean or
around that mode.
``ascended``: mean and covariance that maximise the evidence lower bound of the training on the
features as they are now, at several weights of the KL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig
from bayestune.finalize import refresh
from bayestune.finalize.checks import require_groups
from bayestune.finalize.choice import Kind
from bayestune.finalize.features import Features
from bayestune.finalize.refresh import Head
from bayestune.finalize.temperature import rows_at_once
from bayestune.head import GaussianHead, OrdinalHead
from bayestune.posterior import ascend, dense, laplace, mode
from bayestune.posterior.evidence import log_evidence, updated_precision
from bayestune.posterior.mode import basis_of

#: Precisions of the refresh, in units of the prior's own precision 1/σ₀².
PRECISIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: Factors on the trained standard deviations.
SCALES = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)
#: KL weights tried: the ELBO itself, and colder posteriors for easy or many-class tasks.
KAPPAS = (1.0, 0.3, 0.1)
#: Standard deviation of the prior on the logarithm of a precision, one decade: a handful of rows
#: held out cannot drive the choice to extremes, a few hundred leave it where they want it.
PRIOR_SD = math.log(10)

#: Fixed-point steps of grouped precisions at most, what counts as settled, and how far they go.
_ROUNDS, _SETTLED, _RANGE = 30, 0.02, 1e4

_ASCENDED = {"diagonal": laplace.Diagonal, "eigen": laplace.Eigen, "block": laplace.Block}


@dataclass(frozen=True)
class Option:
    """One posterior that can be delivered.

    Attributes:
        kind: where its covariance comes from.
        value: the factor on the trained standard deviations, the precision of the refresh in units
            of the prior's, or the weight of the KL.
        cost: what the prior on the value charges, in nats.
        mu: its logit means of the held-out rows ``(N, K)``.
        var: its logit variances ``(N, K)`` or covariances ``(N, K, K)``; None where these would not
            fit into memory together.
        form: what the data add to the prior's precision; None for the trained covariance.
        precision: the prior's precision τ beside it, in 1/weight².
        mean: the mean that goes with it ``(K, D)``; None where the trained one stays.
        log_evidence: log marginal likelihood of the training labels; None where it is not one.
        excess: for class blocks of two classes, see `refresh.excess`.
    """

    kind: Kind
    value: float
    cost: float
    mu: Tensor
    var: Tensor | None
    form: laplace.Form | None = None
    precision: float = 1.0
    mean: Tensor | None = None
    log_evidence: float | None = None
    excess: float | None = None

    def moments(self, phi: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logit means and (co)variances of the held-out features, block by block."""
        if self.var is not None or self.form is None:
            yield self.mu, self.var  # pyright: ignore[reportReturnType]
            return
        size = rows_at_once(self.mu.shape[1])
        for mu, rows in zip(self.mu.split(size), phi.split(size), strict=True):
            yield mu, self.form.variance(rows, self.precision)

    def install(self, head: Head) -> None:
        """Give it to the head."""
        head = rows_of(head)
        if self.mean is not None:
            head.weight.copy_(self.mean)
        if self.form is not None:
            refresh.install(head, self.form, self.precision)
        elif self.value != 1.0:
            head.scale_spread(self.value)


def rows_of(head: Head) -> GaussianHead:
    """Return the Gaussian rows of a head."""
    return head.row if isinstance(head, OrdinalHead) else head  # pyright: ignore


def grid(config: FinalizeConfig, kl: float | str) -> list[tuple[Kind, float]]:
    """Return kind and value of all options that a recipe leaves open.

    Args:
        config: which covariances, and what is fixed.
        kl: the recipe's weight of the KL; where it is ``auto`` or 0, `KAPPAS` are tried.
    """
    found: list[tuple[Kind, float]] = []
    if config.refresh in ("none", "auto"):
        scales = SCALES if config.scale == "auto" else (float(config.scale),)
        found.extend(("trained", scale) for scale in scales)
    if config.refit == "ascent":
        kappas = KAPPAS if isinstance(kl, str) or kl == 0 else (float(kl),)
        found.extend(("ascended", kappa) for kappa in kappas)
    elif config.refresh != "none":
        free = isinstance(config.precision, str)
        precisions = PRECISIONS if free else (float(config.precision),)
        found.extend(("refreshed", precision) for precision in precisions)
    return found


def options(
    head: Head,
    fit: Features,
    phi: Tensor,
    config: FinalizeConfig,
    values: Sequence[tuple[Kind, float]],
) -> Iterator[Option]:
    """Yield the options of a grid.

    Args:
        head: the head as trained.
        fit: training features.
        phi: held-out features ``(N, D)``.
        config: the form of the covariance and whether the mean moves.
        values: what `grid` returned.
    """
    require_groups(config, head)
    of_kind = {kind: [v for k, v in values if k == kind] for kind in get_args(Kind)}
    yield from _trained(head, phi, of_kind["trained"])
    if of_kind["refreshed"]:
        name = refresh.form_of(config.refresh, head, len(fit))
        found: Iterator[Option] = iter(())
        if config.refit == "mode" or config.precision == "evidence":
            found = _at_modes(head, fit, phi, name, of_kind["refreshed"])
        if config.precision == "evidence":
            best = max(found, key=lambda option: option.log_evidence or -math.inf)
            if config.groups != "shared":
                best = _by_groups(head, fit, phi, config.groups, best)
            of_kind["refreshed"], found = [best.value], iter([best])
        if config.refit == "none":
            found = _refreshed(head, fit, phi, name, of_kind["refreshed"])
        yield from found
    if of_kind["ascended"]:
        name = refresh.form_of(config.refresh, head, len(fit))
        yield from _ascended(head, fit, phi, name, of_kind["ascended"])


def _trained(head: Head, phi: Tensor, scales: Sequence[float]) -> Iterator[Option]:
    if not scales:
        return
    mu, var = head.moments(phi)
    for scale in scales:
        yield Option("trained", scale, precision_cost(scale**-2), mu, var * scale**2)


def _refreshed(
    head: Head, fit: Features, phi: Tensor, name: str, precisions: Sequence[float]
) -> Iterator[Option]:
    unit = _unit(head)
    if len(precisions) == 1 and name == "block" and _needs_no_eigenvectors(head, fit):
        own = refresh.own_curvature(head, fit.phi @ head.weight.T, fit)
        tau = torch.full_like(head.weight, precisions[0] * unit)
        form: laplace.Form = laplace.Given.of(fit.phi, own, tau)
    else:
        form = refresh.measure(head, head.weight, fit, name)
    mu, excess = rows_of(head)(phi), refresh.excess(form, fit.phi)
    for precision in precisions:
        tau, cost = precision * unit, precision_cost(precision)
        var = _held(form, phi, len(head.weight), tau)
        yield Option("refreshed", precision, cost, mu, var, form, tau, excess=excess(tau))


def _needs_no_eigenvectors(head: Head, fit: Features) -> bool:
    """Return whether one precision is served by Cholesky factors, many times cheaper.

    Two classes report the `refresh.excess`, and the blocks of few rows are taken in their span.
    """
    K, D = head.weight.shape
    return K != 2 and len(fit) >= D


def _at_modes(
    head: Head, fit: Features, phi: Tensor, name: str, precisions: Sequence[float]
) -> Iterator[Option]:
    wide, centre, unit = fit.phi.double(), rows_of(head).prior_mean.double(), _unit(head)
    basis, weight = basis_of(wide), head.weight.detach().double()

    def likelihood(logits: Tensor) -> Tensor:
        return refresh.log_likelihood(head, logits, fit)

    for precision in sorted(precisions, reverse=True):  # the mode at a neighbour is near
        tau = precision * unit
        weight = mode(wide, weight, centre, tau, likelihood, basis=basis, tolerance=1e-4)
        mean = weight.to(head.weight)
        form = refresh.measure(head, mean, fit, name)
        values = (form.block if isinstance(form, laplace.Span) else form).values.double()  # pyright: ignore
        evidence = log_evidence(likelihood(wide @ weight.T), weight, centre, values, tau)
        yield Option(
            "refreshed",
            precision,
            precision_cost(precision),
            phi @ mean.T,
            _held(form, phi, len(mean), tau),
            form,
            tau,
            mean,
            float(evidence),
            refresh.excess(form, fit.phi)(tau),
        )


def _by_groups(head: Head, fit: Features, phi: Tensor, groups: str, start: Option) -> Option:
    """Return class blocks whose precisions, one per group, are the evidence's fixed point."""
    wide, own = fit.phi.double(), refresh.groups_of(groups, head, fit)
    basis, centre = basis_of(wide), rows_of(head).prior_mean.double()
    weight = start.mean.double()  # pyright: ignore[reportOptionalMemberAccess]
    tau = torch.full_like(centre, start.precision)

    def likelihood(logits: Tensor) -> Tensor:
        return refresh.log_likelihood(head, logits, fit)

    for _ in range(_ROUNDS):
        weight = mode(wide, weight, centre, tau, likelihood, basis=basis, tolerance=1e-4)
        form = laplace.Given.of(wide, refresh.own_curvature(head, wide @ weight.T, fit), tau)
        updated = updated_precision(
            weight, centre, dense.marginal_scale(form.factor).square(), tau, own
        ).clamp(start.precision / _RANGE, start.precision * _RANGE)
        still = (updated / tau).log().abs().max() < _SETTLED
        tau = updated
        if still:
            break
    weight = mode(wide, weight, centre, tau, likelihood, basis=basis, tolerance=1e-4)
    mean = weight.to(head.weight)
    form = laplace.Given.of(
        fit.phi, refresh.own_curvature(head, fit.phi @ mean.T, fit), tau.to(head.weight)
    )
    log_det = 2 * torch.linalg.slogdet(form.factor.double()).logabsdet.sum() + tau.log().sum()
    penalty = (tau * (weight - centre).square()).sum()
    evidence = likelihood(wide @ weight.T) + 0.5 * (log_det - penalty)
    typical = float(tau.log().mean().exp())
    return replace(
        start,
        value=typical / _unit(head),
        mu=phi @ mean.T,
        var=form.variance(phi),
        form=form,
        precision=typical,
        mean=mean,
        log_evidence=float(evidence),
        excess=None,
    )


def _ascended(
    head: Head, fit: Features, phi: Tensor, name: str, kappas: Sequence[float]
) -> Iterator[Option]:
    form = laplace.Span if name == "block" and len(fit) < head.in_features else _ASCENDED[name]
    unit = _unit(head)
    for kappa in kappas:
        found = ascend(
            fit.phi,
            fit.labels,
            head.weight.detach(),
            form,
            rows_of(head).prior_mean,
            rows_of(head).log_prior_variance.exp(),
            refresh.bound_of(head),
            kappa=kappa,
            weights=fit.weights,
            mask=fit.mask,
        )
        mu, var = phi @ found.mean.T, found.form.variance(phi, unit)
        yield Option("ascended", kappa, 0.0, mu, var, found.form, unit, found.mean)


def _held(form: laplace.Form, phi: Tensor, num_classes: int, precision: float) -> Tensor | None:
    """Return the logit (co)variances, or None where covariances of all rows are too many."""
    coupled = isinstance(form, laplace.Kronecker | laplace.Full)
    if coupled and len(phi) > rows_at_once(num_classes):
        return None
    return form.variance(phi, precision)


def _unit(head: Head) -> float:
    """Return the prior's own precision 1/σ₀²."""
    return float((-rows_of(head).log_prior_variance).exp())


def precision_cost(precision: float) -> float:
    """Return what the prior charges a precision in units of the prior's own, in nats."""
    return (math.log(precision) / PRIOR_SD) ** 2 / 2
