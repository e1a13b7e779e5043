"""Natural gradient of a Gaussian's deviations, the stochastic form of their fixed point."""

from __future__ import annotations

import torch
from torch import Tensor

#: A precision cannot be negative, but a noisy estimate of one can.
_LEAST = 0.1


@torch.no_grad()
def step_deviations(log_scale: Tensor, grad: Tensor, rate: float, kl_weight: float) -> None:
    """Move standard deviations towards their fixed point under the loss of a batch, in place.

        s⁻² ← (1 − ρ) s⁻² + ρ P,   P = s⁻² (1 + g/w),   g = ∂(nll + w · KL)/∂ log s

    With w = κ/N and a prior variance σ₀², P is 1/σ₀² + (N/κ) mean_b c_b φ_b², the precision at
    which the bound is stationary in s (`posterior.ascent`), estimated from the batch: s⁻² is its
    running mean. It is the step of natural gradient, whose metric for log s is 2.

    Args:
        log_scale: log s, ``(K, D)``; changed.
        grad: g, ``(K, D)``.
        rate: ρ in (0, 1]; 1/ρ batches are averaged.
        kl_weight: w, the weight of the KL beside the mean negative log-likelihood.

    Source: Khan and Rue, The Bayesian learning rule (2021), section 4, for a diagonal Gaussian.
    """
    growth = (1 + rate * grad / kl_weight).clamp_min(_LEAST)
    log_scale.sub_(0.5 * growth.log())
