"""The exact posterior of Gaussian classes, from counts, sums and squares of projected features.

    y ~ Cat(π),   x | y=k ~ N(μ_k, Σ),   μ_k ~ N(0, τ²I),   Σ = diag(σ²)

Given the noise Σ the posterior q(μ_k) = N(m_k, diag(s_k²)) is conjugate; Σ is fitted around it.
What the model then says of an input is in `posterior.generative`. ``scale`` holds deviations s;
``noise`` and ``prior_variance`` hold variances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """All that labelled features say about the classes.

    Attributes:
        counts: rows of each class, weighted, ``(K,)``.
        sums: their sums Σ x, ``(K, P)``.
        squares: Σ x² over all rows, ``(P,)``.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def of(
        cls, x: Tensor, labels: Tensor, num_classes: int, weights: Tensor | None = None
    ) -> Statistics:
        """Count features ``(N, P)`` with class indices and factors on the rows, each ``(N,)``."""
        omega = x.new_ones(len(x)) if weights is None else weights.to(x)
        counts = x.new_zeros(num_classes).index_add_(0, labels, omega)
        sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, labels, omega[:, None] * x)
        return cls(counts, sums, omega @ x.square())

    def __add__(self, other: Statistics) -> Statistics:  # pyright: ignore
        """Return those of the rows of both."""
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


class Fit(NamedTuple):
    """A fitted model of the classes.

    Attributes:
        mean: posterior means m, ``(K, P)``.
        scale: posterior standard deviations s, ``(K, P)``.
        noise: noise variances σ², ``(P,)``.
        prior_variance: τ², a scalar.
    """

    mean: Tensor
    scale: Tensor
    noise: Tensor
    prior_variance: Tensor


def log_class_prior(counts: Tensor, concentration: float = 1.0) -> Tensor:
    """Return log π_k = log (n_k + α) / (N + Kα), the mean of the Dirichlet posterior, ``(K,)``.

    Args:
        counts: rows of each class, ``(K,)``.
        concentration: α of the symmetric Dirichlet prior; 1 is uniform over all π.
    """
    return (counts + concentration).log() - (counts + concentration).sum().log()


def posterior(
    statistics: Statistics, noise: Tensor, prior_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the exact posterior of the class means given the noise.

        s_k² = (1/τ² + n_k/σ²)⁻¹,   m_k = s_k² Σ_{n: y_n=k} x_n / σ²

    Args:
        statistics: counts and sums.
        noise: σ², ``(P,)``.
        prior_variance: τ², a scalar.

    Returns:
        Means and standard deviations, each ``(K, P)``.
    """
    variance = 1 / (1 / prior_variance + statistics.counts.unsqueeze(1) / noise)
    return variance * statistics.sums / noise, variance.sqrt()


def log_noise_prior(noise: Tensor, rows: float = 1.0, start: float = 1.0) -> Tensor:
    """Return the log of the scaled inverse χ² prior on the noise, up to a constant.

        Σ_p [ −(ν/2 + 1) log σ² − ν σ₀² / 2σ² ]

    It says what ν rows of variance σ₀² would say; the inverse Wishart prior of a diagonal.

    Args:
        noise: σ², ``(P,)``.
        rows: ν.
        start: σ₀²; 1 is the variance that the features have altogether.
    """
    return -((0.5 * rows + 1) * noise.log() + 0.5 * rows * start / noise).sum()


def fit(
    statistics: Statistics,
    prior_variance: Tensor,
    *,
    learn_prior: bool = False,
    rows: float = 1.0,
    start: float = 1.0,
    steps: int = 200,
    tolerance: float = 1e-7,
) -> Fit:
    """Fit the noise by expectation and maximisation, around the exact posterior of the means.

        σ² = ( νσ₀² + Σ_n E(x_n − μ_{y_n})² ) / (ν + N + 2),   τ² = mean over k, p of E μ_kp²

    Every step raises log p(x | y, Σ, τ²) + `log_noise_prior`, the class means integrated out; the
    second update is for ``learn_prior``.

    Args:
        statistics: counts, sums and squares of all rows.
        prior_variance: τ², a scalar; where it starts if it is learnt.
        learn_prior: whether τ² is fitted as well (empirical Bayes).
        rows: ν of `log_noise_prior`.
        start: σ₀² of `log_noise_prior`.
        steps: the most steps.
        tolerance: stop when no logarithm of a variance moves by more.

    Returns:
        Posterior, noise and prior variance.
    """
    total = statistics.counts.sum()
    noise, tau = torch.full_like(statistics.squares, start), prior_variance
    for _ in range(steps):
        mean, scale = posterior(statistics, noise, tau)
        second = mean.square() + scale.square()  # (K, P), E μ²
        around = statistics.squares - 2 * (mean * statistics.sums).sum(0)
        around = around + statistics.counts @ second
        moved = (rows * start + around.clamp_min(0)) / (rows + total + 2)
        tried = second.mean() if learn_prior else tau
        step = torch.cat([(moved / noise).log(), (tried / tau).log().reshape(1)]).abs().max()
        noise, tau = moved, tried
        if step < tolerance:
            break
    return Fit(*posterior(statistics, noise, tau), noise, tau)


def recover(fitted: Fit, rows: float = 1.0, start: float = 1.0) -> Statistics:
    """Return the statistics that a fit was made from: it forgets nothing of them.

        n_k = mean over p of σ² (1/s_k² − 1/τ²),   Σ x = m_k σ²/s_k²
        Σ x² = σ² (ν + N + 2) − νσ₀² + Σ_k [ 2 m_k Σ x − n_k (m_k² + s_k²) ]

    So that statistics of more rows can be added, and the fit of all is that from scratch, up to the
    tolerance of the fit and the precision in which it was kept.

    Args:
        fitted: what `fit` returned.
        rows: ν, as it was fitted with.
        start: σ₀², as it was fitted with.
    """
    mean, variance, noise = fitted.mean, fitted.scale.square(), fitted.noise
    counts = (noise * (1 / variance - 1 / fitted.prior_variance)).mean(1).clamp_min(0)
    sums = mean * noise / variance
    around = noise * (rows + counts.sum() + 2) - rows * start
    second = counts @ (mean.square() + variance)
    return Statistics(counts, sums, around + 2 * (mean * sums).sum(0) - second)
