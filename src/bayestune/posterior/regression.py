"""Numbers instead of classes: expected log likelihoods, and the predictive, from latent moments.

The latent means are independent Gaussians f_k ~ N(μ_k, v_k), as logits are in `posterior.bounds`.
Every scale is a standard deviation. The penalty of an output is v_k times the precision of that
output alone, outputs are summed, and the caller averages over rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.errors import NumericsError

_LOG_2PI = math.log(2 * math.pi)
# So close to a Gaussian that log-gammas would only lose digits beyond it.
_GAUSSIAN_DOF = 1e6


def gaussian(mu: Tensor, var: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Return the expected log likelihood of Gaussian noise; it is exact.

        E log N(y; f, σ²) = Σ_k [ log N(y_k; μ_k, σ_k²) − v_k / (2σ_k²) ]

    Args:
        mu: latent means, ``(B, K)``.
        var: latent variances, ``(B, K)``.
        y: numbers, ``(B, K)``.
        scale: standard deviations σ of the noise, ``(K,)``.

    Returns:
        Nats, ``(B,)``.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599).
    """
    second_moment = (y - mu).square() + var
    return -0.5 * (_LOG_2PI + 2 * scale.log() + second_moment / scale.square()).sum(-1)


def student(mu: Tensor, var: Tensor, y: Tensor, scale: Tensor, dof: Tensor) -> Tensor:
    """Return a lower bound on the expected log likelihood of Student-t noise.

        E log t_ν(y; f, σ) ≥ Σ_k log t_ν(√((y_k − μ_k)² + v_k); 0, σ_k)

    It is Jensen's inequality on the convex −log(1 + ·), and the same as giving every row its own
    precision λ/σ², λ ~ Gamma(ν/2, ν/2), with the best Gamma posterior over λ. Tight as v → 0.

    Args:
        mu: latent means, ``(B, K)``.
        var: latent variances, ``(B, K)``.
        y: numbers, ``(B, K)``.
        scale: scales σ; the noise's standard deviation is σ√(ν/(ν − 2)), ``(K,)``.
        dof: degrees of freedom ν, a scalar.

    Returns:
        Nats, ``(B,)``.
    """
    second_moment = (y - mu).square() + var
    constant = torch.lgamma(0.5 * (dof + 1)) - torch.lgamma(0.5 * dof)
    constant = constant - 0.5 * (math.pi * dof).log() - scale.log()
    tail = torch.log1p(second_moment / (dof * scale.square()))
    return (constant - 0.5 * (dof + 1) * tail).sum(-1)


def heteroscedastic(
    mu: Tensor, var: Tensor, y: Tensor, log_var_mean: Tensor, log_var_var: Tensor
) -> Tensor:
    """Return the expected log likelihood of Gaussian noise of uncertain size; it is exact.

        log σ_k² ~ N(m_k, s_k),   E σ_k⁻² = exp(−m_k + ½s_k)
        E log N(y; f, σ²) = −½ Σ_k [ log 2π + m_k + exp(−m_k + ½s_k) ((y_k − μ_k)² + v_k) ]

    Args:
        mu: latent means, ``(B, K)``.
        var: latent variances, ``(B, K)``.
        y: numbers, ``(B, K)``.
        log_var_mean: means m of the logarithm of the noise's variance, ``(B, K)``.
        log_var_var: variances s of it, ``(B, K)``.

    Returns:
        Nats, ``(B,)``.
    """
    second_moment = (y - mu).square() + var
    precision = (0.5 * log_var_var - log_var_mean).exp()
    return -0.5 * (_LOG_2PI + log_var_mean + precision * second_moment).sum(-1)


@dataclass(frozen=True)
class RegressionPredictive:
    """The predictive of one number per row; all but ``dof`` are in the unit of the number.

        std² = aleatoric² + epistemic²

    Gaussian where ``dof`` is None, else Student-t with this mean, standard deviation and these ν.

    Attributes:
        mean: ``(B,)``.
        aleatoric: standard deviation of the noise, ``(B,)``.
        epistemic: standard deviation of the latent mean under the posterior, ``(B,)``.
        dof: degrees of freedom ν above 4, ``(B,)``; None stands for infinity.
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    dof: Tensor | None = None

    @classmethod
    def from_moments(
        cls, mu: Tensor, var: Tensor, noise_var: Tensor, dof: float | None = None
    ) -> RegressionPredictive:
        """Predict from a Gaussian latent mean and noise around it.

        With Gaussian noise of known size this is the predictive itself; of noise of uncertain size
        it keeps the first two moments. A Gaussian plus Student-t noise becomes the Student-t with
        the same first four moments, which grows Gaussian where the latent variance v prevails:

            dof = 4 + (ν − 4) ((v + s)/s)²,   s the variance of the noise

        Args:
            mu: latent means, ``(B, 1)``.
            var: latent variances, ``(B, 1)``.
            noise_var: variances s of the noise, ``(B, 1)``.
            dof: degrees of freedom ν of the noise, above 4.

        Raises:
            NumericsError: a moment is not finite, or a variance is negative.
        """
        for moment in (mu, var, noise_var):
            if not torch.isfinite(moment).all():
                raise NumericsError(
                    "A predicted moment is NaN or infinite. Check the features and the learning "
                    "rate."
                )
        if (var < 0).any() or (noise_var < 0).any():
            raise NumericsError("A predicted variance is negative.")
        matched: Tensor | None = None
        if dof is not None:
            excess = (dof - 4) * ((var + noise_var) / noise_var).squeeze(-1).square()
            matched = (4 + excess).clamp_max(_GAUSSIAN_DOF)
        return cls(mu.squeeze(-1), noise_var.squeeze(-1).sqrt(), var.squeeze(-1).sqrt(), matched)

    @property
    def std(self) -> Tensor:
        """The standard deviation of the number, ``(B,)``."""
        return torch.hypot(self.aleatoric, self.epistemic)

    def affine(self, shift: float, scale: float) -> RegressionPredictive:
        """Return the predictive of shift + scale · y in float64 on the CPU."""
        mean, aleatoric, epistemic = (
            t.cpu().double() * scale for t in (self.mean, self.aleatoric, self.epistemic)
        )
        dof = None if self.dof is None else self.dof.cpu()
        return RegressionPredictive(mean + shift, aleatoric, epistemic, dof)
