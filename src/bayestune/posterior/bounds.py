"""The expected log likelihood E_q[log softmax(z)_y] from logit moments, and bounds below it.

The logits are independent Gaussians z_k ~ N(μ_k, v_k), unless a covariance is asked for. Each
function returns one value per example, so that the caller weighs, masks and averages.

    jensen ≤ tilted ≤ exact,   bohning ≤ exact,   E monte_carlo = exact

A tighter bound is not by itself a better objective: what Jensen takes off also restrains features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayestune.posterior.quadrature import expected_logsumexp

# Newton on a convex function settles in five or six; the rest is for variances of a hundred.
_NEWTON_STEPS = 20
_STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.01)


def jensen(mu: Tensor, var: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the Jensen bound, closed form and without noise.

        E log softmax(z)_y ≥ μ_y − log Σ_k exp(μ_k + ½ v_k)

    It holds for correlated logits too and is tight as v → 0. Its slope in v is −½ softmax(μ + ½v),
    where to second order the true one is −½ p(1 − p): confident classes are over-penalised.

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        mask: which classes exist for a row, bool ``(B, K)``; the others are left out of the sum.

    Returns:
        The bound in nats, ``(B,)``.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599).
    """
    log_partition = torch.logsumexp(_present(mu + 0.5 * var, mask), dim=-1)
    return _at(mu, labels) - log_partition


def bohning(mu: Tensor, var: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return Böhning's bound: the curvature of log Σ exp replaced by its largest, at the mean.

        E log softmax(z)_y ≥ μ_y − LSE(μ) − ¼ (1 − 1/K) Σ_k v_k

    Linear in v with the same slope for every class: far looser than Jensen on classes that are out
    of the race, tighter where a likely class is very uncertain.

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        mask: which classes exist for a row, bool ``(B, K)``; K counts these.

    Returns:
        The bound in nats, ``(B,)``.

    Source: Böhning, Multinomial logistic regression algorithm (1992).
    """
    exists = torch.ones_like(mu) if mask is None else mask.to(mu.dtype)
    penalty = 0.25 * (1 - 1 / exists.sum(-1)) * (exists * var).sum(-1)
    return _at(mu, labels) - torch.logsumexp(_present(mu, mask), dim=-1) - penalty


def tilted(mu: Tensor, var: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the tilted bound at its best tilt: never below Jensen, which is the tilt of zero.

        E log softmax(z)_y ≥ μ_y − min_a [ ½ Σ_k a_k² v_k + LSE_k(μ_k + (½ − a_k) v_k) ]

    The bracket is convex in a and its Hessian is diagonal plus rank one, so that Newton's step
    costs O(K). Gradients treat the tilt as a constant, which at the minimum is exact.

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        The bound in nats, ``(B,)``.

    Source: Knowles and Minka, Non-conjugate variational message passing (2011).
    """
    var = var if mask is None else var.masked_fill(~mask, 0)
    mu_present = _present(mu, mask)

    def partition(a: Tensor) -> Tensor:
        quadratic = 0.5 * (a.square() * var).sum(-1)
        return quadratic + torch.logsumexp(mu_present + (0.5 - a) * var, dim=-1)

    def newton(a: Tensor) -> Tensor:
        p = (mu_present + (0.5 - a) * var).softmax(-1)
        # The Hessian over v is diag(1 + v p) − p (v p)ᵀ; Sherman and Morrison invert it.
        shrink = 1 / (1 + var * p)
        w = var * p * shrink
        common = (w * (p - a)).sum(-1) / (1 - (w * p).sum(-1))
        return shrink * (p - a + p * common.unsqueeze(-1))

    return _at(mu, labels) - partition(_best_tilt(partition, newton, mu))


def tilted_correlated(
    mu: Tensor, cov: Tensor, labels: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the tilted bound for correlated logits z ~ N(μ, V) at its best tilt.

        E log softmax(z)_y ≥ μ_y − min_a [ ½ aᵀVa + LSE(μ + ½ diag V − Va) ]

    With a diagonal V it is `tilted`. Newton solves a K × K system per example.

    Args:
        mu: logit means, ``(B, K)``.
        cov: logit covariances V, ``(B, K, K)``.
        labels: class indices, ``(B,)``.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        The bound in nats, ``(B,)``.

    Source: Knowles and Minka, Non-conjugate variational message passing (2011).
    """
    if mask is not None:
        cov = cov.masked_fill(~(mask.unsqueeze(-1) & mask.unsqueeze(-2)), 0)
    half = 0.5 * cov.diagonal(dim1=-2, dim2=-1)
    mu_present = _present(mu, mask)
    eye = torch.eye(mu.shape[-1], dtype=mu.dtype, device=mu.device)

    def along(a: Tensor) -> Tensor:
        return (cov @ a.unsqueeze(-1)).squeeze(-1)  # (B, K)

    def partition(a: Tensor) -> Tensor:
        tilt = along(a)
        return 0.5 * (a * tilt).sum(-1) + torch.logsumexp(mu_present + half - tilt, dim=-1)

    def newton(a: Tensor) -> Tensor:
        p = (mu_present + half - along(a)).softmax(-1)
        spread = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)  # (B, K, K)
        return torch.linalg.solve(eye + spread @ cov, p - a)

    return _at(mu, labels) - partition(_best_tilt(partition, newton, mu))


def exact(mu: Tensor, var: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return E log softmax(z)_y itself, by one-dimensional quadrature and without noise.

    Its gradient is the one that Monte Carlo estimates: no bound stands between objective and
    posterior. Costs 100 to 200 exponentials per class and example.

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        The expectation in nats, ``(B,)``.
    """
    return _at(mu, labels) - expected_logsumexp(mu, var, mask)


def monte_carlo(
    mu: Tensor, var: Tensor, labels: Tensor, noise: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the reparametrised Monte Carlo estimate, unbiased for E log softmax(z)_y itself.

        (1/S) Σ_s log softmax(μ + √v ∘ ε_s)_y

    Args:
        mu: logit means, ``(B, K)``.
        var: logit variances, ``(B, K)``.
        labels: class indices, ``(B,)``.
        noise: standard normal draws, ``(S, B, K)``, or ``(S, 1, K)`` to share them between rows.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        The estimate in nats, ``(B,)``.
    """
    # The root has an infinite slope at zero: below the floor the gradient is zero instead.
    std = var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()
    z = mu + std * noise  # (S, B, K)
    log_likelihood = _at(z, labels) - torch.logsumexp(_present(z, mask), dim=-1)  # (S, B)
    return log_likelihood.mean(0)


def _present(z: Tensor, mask: Tensor | None) -> Tensor:
    return z if mask is None else z.masked_fill(~mask, -torch.inf)


def _at(z: Tensor, labels: Tensor) -> Tensor:
    index = labels.unsqueeze(-1).expand(*z.shape[:-1], 1)
    return z.gather(-1, index).squeeze(-1)


@torch.no_grad()
def _best_tilt(
    partition: Callable[[Tensor], Tensor], newton: Callable[[Tensor], Tensor], mu: Tensor
) -> Tensor:
    """Minimise a convex function of the tilt from zero, never accepting a step that raises it."""
    a = torch.zeros_like(mu)
    value = partition(a)
    sizes = mu.new_tensor(_STEP_SIZES)[:, None, None]  # (T, 1, 1)
    for _ in range(_NEWTON_STEPS):
        tried = a + sizes * newton(a)  # (T, B, K)
        values, which = torch.stack([partition(t) for t in tried]).min(0)  # (B,)
        better = values < value
        if not better.any():
            break
        rows = torch.arange(len(a), device=a.device)
        a = torch.where(better.unsqueeze(-1), tried[which, rows], a)
        value = torch.where(better, values, value)
    return a
