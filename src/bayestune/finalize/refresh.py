"""The Laplace refresh: a covariance from the curvature, in place of the one that was trained.

At a mean W with p = softmax(Wφ) and a prior precision τ the class-block posterior is

    S_k = (τ I + Σ_n p_nk (1 − p_nk) φ_n φ_nᵀ)⁻¹

The Jensen bound over-shrinks the posterior along data directions (its stationary point has p̃ where
the curvature has p(1 − p)), which is why a refresh can still improve a variational posterior. The
other forms keep more of the curvature or less, see `posterior.laplace`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.finalize.features import Features
from bayestune.head import GaussianHead, LinearHead, OrdinalHead
from bayestune.head.families import FAMILIES, Name
from bayestune.posterior import bounds, curvature, laplace, ordinal, subspace
from bayestune.posterior.ascent import Bound

Head = GaussianHead | OrdinalHead

logger = logging.getLogger(__name__)

#: Numbers up to which ``auto`` keeps a dense covariance per class (134 MB in fp32).
BLOCK_LIMIT = 2**25
#: Numbers up to which the whole curvature is decomposed (536 MB in float64, a minute or two).
FULL_LIMIT = 2**26

#: What ``finalize.refresh`` asks for by name (a point head, too, gets a covariance then), and the
#: family that it delivers; see `install` for two classes and for fewer rows than features.
FAMILY_OF: dict[str, Name] = {
    "full": "joint",
    "kronecker": "coupled",
    "block": "dense",
    "eigen": "eigen",
    "diagonal": "diagonal",
}
REFRESHES = tuple(FAMILY_OF)

_FAMILY_OF_FORM: dict[type[laplace.Form], Name] = {
    laplace.Diagonal: "diagonal",
    laplace.Eigen: "eigen",
    laplace.Block: "dense",
    laplace.Given: "dense",
    laplace.Span: "subspace",
    laplace.Kronecker: "coupled",
    laplace.Full: "joint",
}


def form_of(refresh: str, head: Head | LinearHead, rows: int) -> str:
    """Return the name of a form for a recipe's ``finalize.refresh``.

    ``auto`` takes dense blocks while all of them hold at most `BLOCK_LIMIT` numbers, and one
    eigenbasis for all classes beyond that. The blocks of fewer rows than features need no more
    than the rows' span.

    Args:
        refresh: ``auto`` or one of `REFRESHES`.
        head: the head that is to get the covariance.
        rows: how many training rows there are.

    Raises:
        ConfigError: the whole curvature is asked for and too large.
    """
    K, D = head.weight.shape
    if K == 1 and refresh in ("full", "kronecker"):
        return "block"  # one row is not coupled to another
    if refresh == "full" and K > 2 and (K * D) ** 2 > FULL_LIMIT:
        raise ConfigError(
            f"finalize.refresh=full would decompose a matrix of {K * D} × {K * D} ({K} classes, "
            f"{D} features); use kronecker, which couples classes too, or block."
        )
    if refresh != "auto":
        return refresh
    numbers = K * min(D, rows) ** 2
    if numbers <= BLOCK_LIMIT:
        return "block"
    logger.info(
        "the refresh keeps one eigenbasis for all classes: dense blocks of %d classes would take "
        "%.1f GB (finalize.refresh=block asks for them)",
        K,
        4e-9 * numbers,
    )
    return "eigen"


@torch.no_grad()
def measure(head: Head, weight: Tensor, fit: Features, name: str) -> laplace.Form:
    """Measure the curvature of the training likelihood at a mean.

    Args:
        head: says what the likelihood is.
        weight: the mean, ``(K, D)``.
        fit: training features.
        name: one of `REFRESHES`.
    """
    own = own_curvature(head, fit.phi @ weight.T, fit)
    if name == "diagonal":
        return laplace.Diagonal.of(fit.phi, own)
    if name == "eigen":
        return laplace.Eigen.of(fit.phi, own)
    if name == "block":
        form = laplace.Span if 0 < len(fit) < fit.phi.shape[1] else laplace.Block
        return form.of(fit.phi, own)
    if name == "full" and len(weight) == 2:
        return laplace.Kronecker.of_two(fit.phi, own)
    form = laplace.Full if name == "full" else laplace.Kronecker
    probs = present(fit.phi @ weight.T, fit).softmax(dim=1)
    return form.of(fit.phi, probs, fit.weights)


def own_curvature(head: Head, logits: Tensor, fit: Features) -> Tensor:
    """Return the weighed curvature of the training rows in each of their logits, ``(N, K)``."""
    if isinstance(head, OrdinalHead):
        own = ordinal.curvature(logits.squeeze(-1), fit.labels, head.cuts.to(logits)).unsqueeze(-1)
        return own if fit.weights is None else own * fit.weights.unsqueeze(-1)
    return curvature.bernoulli(present(logits, fit).softmax(dim=1), fit.weights)


def bound_of(head: Head) -> Bound:
    """Return the bound that the head is trained with, as `posterior.ascend` takes it."""
    if isinstance(head, OrdinalHead):

        def expected(mu: Tensor, var: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
            score, variance = mu.squeeze(-1), var.squeeze(-1)
            return ordinal.expected_log_likelihood(score, variance, labels, head.cuts.to(mu))

        return expected
    # Monte Carlo estimates the expectation itself.
    return getattr(bounds, "exact" if head.likelihood == "monte_carlo" else head.likelihood)


def log_likelihood(head: Head, logits: Tensor, fit: Features) -> Tensor:
    """Return Σ_n ω_n log p(y_n | z_n) of the training rows' logits ``(N, K)``, a scalar."""
    if isinstance(head, OrdinalHead):
        log_p = ordinal.log_probs(logits.squeeze(-1), head.cuts.to(logits))
        rows = log_p.gather(1, fit.labels[:, None]).squeeze(1)
    else:
        rows = bounds.jensen(logits, torch.zeros_like(logits), fit.labels, fit.mask)
    return rows.sum() if fit.weights is None else (fit.weights * rows).sum()


def groups_of(groups: str, head: Head, fit: Features) -> Tensor:
    """Return which weights share a prior precision, int64 ``(K, D)``.

    Args:
        groups: ``class``, one group per class, or ``feature``: features whose mean energies lie in
            the same octave of their standard deviation.
        head: gives the shape.
        fit: training features.
    """
    K, D = head.weight.shape
    if groups == "class":
        return torch.arange(K, device=fit.phi.device)[:, None].expand(K, D)
    octave = fit.phi.double().square().mean(0).clamp_min(1e-30).log2().div(2).round()
    return octave.unique(return_inverse=True)[1].expand(K, D)


def excess(form: laplace.Form, phi: Tensor) -> Callable[[float], float | None]:
    """Return how much too large class blocks make the variance of a difference of two logits.

    The mean over rows under the blocks, divided by that under the whole curvature, which for two
    classes has the blocks' eigenvectors and twice their eigenvalues: between 1 and 2. The rows
    enter by their energy along the eigenvectors, which is taken once for all precisions.

    Args:
        form: class blocks of two classes; other forms and numbers of classes have no excess.
        phi: features, ``(N, D)``.

    Returns:
        The ratio at a prior precision τ, or None.
    """
    block = form.block if isinstance(form, laplace.Span) else form
    if not isinstance(block, laplace.Block) or len(block.values) != 2 or not len(phi):
        return lambda precision: None
    inside = phi @ form.basis if isinstance(form, laplace.Span) else phi
    energy = torch.stack([(inside @ Q).square().sum(0) for Q in block.vectors])  # (2, D)
    beyond = 2 * subspace.outside(phi, inside).sum()

    def ratio(precision: float) -> float:
        parts = [(energy / (c * block.values + precision)).sum() for c in (1, 2)]
        blocks, whole = (part + beyond / precision for part in parts)
        return float(blocks / whole)

    return ratio


def install(head: GaussianHead, form: laplace.Form, precision: float) -> None:
    """Give the head the covariance that a form has at a prior precision τ."""
    name = _FAMILY_OF_FORM[type(form)]
    head.set_spread(name, **FAMILIES[name].tensors(form.spread(precision)))


def present(logits: Tensor, fit: Features) -> Tensor:
    """Return logits ``(N, K)`` with −∞ where a class does not exist."""
    return logits if fit.mask is None else logits.masked_fill(~fit.mask, -torch.inf)
