"""Gaussian classes and a posterior over their means: the generative last layer.

    y ~ Cat(π),   x | y=k ~ N(μ_k, Σ),   μ_k ~ N(0, τ²I),   q(μ_k) = N(m_k, diag(s_k²))

with one noise Σ = diag(σ²) for all classes. x is a feature in few axes of unit variance, see
`posterior.projection`: over thousands of raw dimensions log densities and logits would grow with D
until every softmax is saturated.

The exact posterior is in `posterior.classes`. A prediction is closed form and takes the feature
itself for an observation, as a generative model does:

    p(y=k | x) ∝ π_k N(x; m_k, S_k + Σ),      p(x) = Σ_k π_k N(x; m_k, S_k + Σ)

``scale`` holds standard deviations s (K, P); ``noise`` and ``prior_variance`` hold variances.

Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599), the generative model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_ABSENT = -1e30
#: Logits (S, B, K) handled at once.
_ELEMENTS = 2**19


def log_joint(x: Tensor, mean: Tensor, scale: Tensor, noise: Tensor, log_prior: Tensor) -> Tensor:
    """Return log π_k + log N(x; m_k, S_k + Σ): a softmax of it predicts, a logsumexp is log p(x).

    Args:
        x: projected features, ``(B, P)``.
        mean: posterior means, ``(K, P)``.
        scale: posterior standard deviations, ``(K, P)``; zeros for known means.
        noise: σ², ``(P,)``.
        log_prior: log π, ``(K,)``.

    Returns:
        Nats, ``(B, K)``.
    """
    variance = scale.square() + noise  # (K, P)
    distance = _squared(x, mean, 1 / variance)
    return log_prior - 0.5 * (distance + (2 * math.pi * variance).log().sum(-1))


def bound(
    x: Tensor,
    labels: Tensor,
    mean: Tensor,
    scale: Tensor,
    noise: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the bound on the expected log likelihood of the labels, closed form.

        E log p(y | x, μ) ≥ log π_y + log N(x; m_y, Σ) − ½ tr(S_y Σ⁻¹)
                            − log Σ_k π_k N(x; m_k, S_k + Σ)

    The first three terms are exact; the last is Jensen's, E log ≤ log E.

    Args:
        x: projected features, ``(B, P)``.
        labels: class indices, ``(B,)``.
        mean: means of q, ``(K, P)``.
        scale: standard deviations of q, ``(K, P)``.
        noise: σ², ``(P,)``.
        log_prior: log π, ``(K,)``.
        mask: which classes exist for a row, bool ``(B, K)``; the others are left out of the sum.

    Returns:
        The bound in nats, ``(B,)``.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599).
    """
    known = log_joint(x, mean, torch.zeros_like(scale), noise, log_prior)  # (B, K)
    expected = known - 0.5 * (scale.square() / noise).sum(-1)
    joint = log_joint(x, mean, scale, noise, log_prior)
    if mask is not None:
        joint = joint.masked_fill(~mask, _ABSENT)
    return expected.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - joint.logsumexp(-1)


def information(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    noise: Tensor,
    log_prior: Tensor,
    normals: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Estimate the mutual information of label and class means for a feature that is seen.

        I(y; μ | x) = Σ_k p(k | x) E[ KL( p(y | x, μ) ‖ p(y | x) ) | x, y=k ]

    p(y | x) is the closed form, which is the average of p(y | x, μ) over the means *given x*. Of a
    feature of class k only μ_k learns, by one conjugate update, so that the average is a mixture
    over k of the posterior with one class replaced:

        μ_k | x, y=k = m_k + g (x − m_k) + s_k √(1 − g) ε,   g = s_k² / (s_k² + σ²)

    Draws are shared by all rows and a row's logits are matrix products of sizes (B, P) and (P, SK);
    the sums over classes are updated for the one that is replaced. An average of divergences is
    never negative and has an error in proportion to itself.

    Args:
        x: projected features, ``(B, P)``.
        mean: posterior means, ``(K, P)``.
        scale: posterior standard deviations, ``(K, P)``.
        noise: σ², ``(P,)``.
        log_prior: log π, ``(K,)``.
        normals: standard normal draws, ``(S, K, P)``.
        mask: which classes exist for a row, bool ``(B, K)``.

    Returns:
        Nats, ``(B,)``.
    """
    stay = noise / (scale.square() + noise)  # (K, P), 1 − g
    before = _Draws.of(mean, scale, noise, torch.ones_like(stay), normals)
    after = _Draws.of(mean, scale, noise, stay, normals)
    size = max(1, _ELEMENTS // (normals.shape[0] * normals.shape[1]))
    found = []
    for rows in range(0, max(len(x), 1), size):
        part, some = x[rows : rows + size], None if mask is None else mask[rows : rows + size]
        logits = [
            log_joint(part, mean, scale, noise, log_prior),
            log_prior - 0.5 * before.distances(part, mean),
            log_prior - 0.5 * after.distances(part, mean),
        ]
        if some is not None:
            logits = [z.masked_fill(~some, _ABSENT) for z in logits]
        found.append(_expected_divergence(*logits))
    return torch.cat(found)


class _Draws(NamedTuple):
    """Residuals a (x − m) − s √a ε of draws, in units of the noise, ready for any x."""

    precision: Tensor  # a²/σ², (K, P)
    slope: Tensor  # (S, K, P)
    constant: Tensor  # (S, K)

    @classmethod
    def of(
        cls, mean: Tensor, scale: Tensor, noise: Tensor, stay: Tensor, normals: Tensor
    ) -> _Draws:
        deviation = scale * stay.sqrt() * normals  # (S, K, P)
        slope = 2 * deviation * stay / noise
        constant = (slope * mean + deviation.square() / noise).sum(-1)
        return cls(stay.square() / noise, slope, constant)

    def distances(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the squared lengths of the residuals, ``(S, B, K)``."""
        S, K, P = self.slope.shape
        cross = (x @ self.slope.reshape(S * K, P).T).reshape(len(x), S, K)
        return _squared(x, mean, self.precision) - cross.transpose(0, 1) + self.constant[:, None]


def _expected_divergence(joint: Tensor, logits: Tensor, updated: Tensor) -> Tensor:
    """Return Σ_k p_k E KL from the closed form (B, K) and logits before and after (S, B, K)."""
    log_p = joint.log_softmax(-1)
    top = torch.maximum(logits, updated).amax(-1, keepdim=True)
    logits, updated = logits - top, updated - top
    before, after = logits.exp(), updated.exp()
    # With w_j = z_j − log p_j the divergence is Σ e^z w / Σ e^z − log Σ e^z; one class at a time
    # is taken out of both sums and put back updated.
    total = before.sum(-1, keepdim=True) - before + after  # (S, B, K)
    weighed = before * (logits - log_p)
    weighed = weighed.sum(-1, keepdim=True) - weighed + after * (updated - log_p)
    total = total.clamp_min(torch.finfo(total.dtype).tiny)
    divergence = (weighed / total - total.log()).clamp_min(0)
    return (log_p.exp() * divergence.mean(0)).sum(-1)


def _squared(x: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Return Σ_p precision_kp (x_p − mean_kp)², ``(B, K)``, by matrix products."""
    weighed = precision * mean
    cross = x.square() @ precision.T - 2 * x @ weighed.T  # (B, K)
    return (cross + (weighed * mean).sum(-1)).clamp_min(0)
