"""The noise around a predicted number: what stands in the place of the softmax for regression.

Numbers are in units of the training targets' standard deviation, so that the noise starts at 1:
before anything is learnt all of their variance is noise.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError, nearest
from bayestune.head.gaussian import GaussianHead
from bayestune.posterior import regression

Kind = Literal["gaussian", "student", "heteroscedastic"]

#: The noise falls from 1 to that of a good fit within one training, so it moves faster than other
#: logarithms.
_LR_FACTOR = 10.0
#: Above this the first four moments exist, which the predictive keeps.
_LEAST_DOF = 4.0
_FIRST_DOF = 8.0
#: At a typical input log σ² has prior variance 1 (twice the scale), and starts close to its level.
_PRIOR_SCALE, _INIT_SCALE = 0.5, 0.1
_ROUNDS = 100


class Noise(nn.Module):
    """y = f + ε for K outputs, ε of one of three kinds.

        gaussian          ε ~ N(0, σ²)
        student           ε ~ σ t_ν, ν > 4: outliers cost, and pull, less
        heteroscedastic   ε ~ N(0, σ²(x)), log σ²(x) = log σ² + uᵀh, q(u) Gaussian

    Args:
        kind: which.
        in_features: feature dimension D.
        outputs: K.

    Attributes:
        log_scale: log σ, parameter, ``(K,)``.
        log_excess_dof: log(ν − 4), parameter, scalar; student only.
        log_variance: q(u), a `GaussianHead` with K outputs; heteroscedastic only.

    Raises:
        ConfigError: an unknown kind.
    """

    def __init__(self, kind: Kind, *, in_features: int, outputs: int = 1) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ConfigError(f"Unknown noise {kind!r}.{nearest(kind, get_args(Kind))}")
        self.kind: Kind = kind
        self.log_scale = nn.Parameter(torch.zeros(outputs))
        self.log_excess_dof: nn.Parameter | None = None
        self.log_variance: GaussianHead | None = None
        if kind == "student":
            self.log_excess_dof = nn.Parameter(torch.tensor(math.log(_FIRST_DOF - _LEAST_DOF)))
        if kind == "heteroscedastic":
            self.log_variance = GaussianHead(
                in_features=in_features,
                num_classes=outputs,
                prior_scale=_PRIOR_SCALE,
                init_scale=_INIT_SCALE,
            )

    @property
    def dof(self) -> float | None:
        """Degrees of freedom ν; None for Gaussian noise."""
        return None if self.log_excess_dof is None else float(self._dof().detach())

    def set_feature_energy(self, energy: float) -> None:
        """Set prior and start of q(u) by E‖h‖²; see `head.energy`."""
        if self.log_variance is not None:
            self.log_variance.set_feature_energy(energy)

    def lr_factors(self) -> dict[str, float]:
        """Return the factor on the learning rate of each parameter."""
        factors = {"log_scale": _LR_FACTOR}
        if self.log_excess_dof is not None:
            factors["log_excess_dof"] = _LR_FACTOR
        if self.log_variance is not None:
            own = self.log_variance.lr_factors()
            factors |= {f"log_variance.{name}": factor for name, factor in own.items()}
        return factors

    def bound(self, h: Tensor, mu: Tensor, var: Tensor, y: Tensor) -> Tensor:
        """Return the expected log likelihood of each row, or the bound on it, in nats ``(B,)``.

        Args:
            h: features, ``(B, D)``.
            mu: latent means, ``(B, K)``.
            var: latent variances, ``(B, K)``.
            y: numbers, ``(B, K)``.
        """
        if self.log_variance is not None:
            return regression.heteroscedastic(mu, var, y, *self._log_variance_moments(h))
        if self.log_excess_dof is not None:
            return regression.student(mu, var, y, self.log_scale.exp(), self._dof())
        return regression.gaussian(mu, var, y, self.log_scale.exp())

    def kl(self) -> Tensor:
        """Return KL(q(u) ‖ p(u)) in nats; 0 where there is no u."""
        if self.log_variance is None:
            return self.log_scale.new_zeros(())
        return self.log_variance.kl()

    def variance(self, h: Tensor) -> Tensor:
        """Return the expected variance of the noise.

            σ²,   σ²ν/(ν − 2),   E σ²(x) = exp(m + ½s)

        Args:
            h: features, ``(B, D)``.

        Returns:
            Variances, ``(B, K)``; m and s are mean and variance of log σ²(x).
        """
        if self.log_variance is not None:
            mean, var = self._log_variance_moments(h)
            return (mean + 0.5 * var).exp()
        variance = (2 * self.log_scale).exp()
        if self.log_excess_dof is not None:
            variance = variance * self._dof() / (self._dof() - 2)
        return variance.expand(*h.shape[:-1], -1)

    def row_weights(self, h: Tensor, mu: Tensor, var: Tensor, y: Tensor) -> Tensor:
        """Return the expected precision of the noise of each row times σ², ``(B, K)``.

            1,   (ν + 1)/(ν + ((y − μ)² + v)/σ²),   σ² E σ⁻²(x)

        Arguments are those of `bound`. Given them, the posterior over f is that of a linear
        regression with rows of precision r/σ².
        """
        level = (2 * self.log_scale).exp()
        if self.log_variance is not None:
            mean, log_var = self._log_variance_moments(h)
            return level * (0.5 * log_var - mean).exp()
        if self.log_excess_dof is not None:
            dof = self._dof()
            return (dof + 1) / (dof + ((y - mu).square() + var) / level)
        return torch.ones_like(mu)

    @torch.no_grad()
    def fit_level(self, h: Tensor, mu: Tensor, var: Tensor, y: Tensor) -> None:
        """Set σ to the maximum of the bound over these rows, all else fixed.

            σ² = (1/N) Σ_n r_n ((y_n − μ_n)² + v_n)

        which is closed where r does not depend on σ, and a rising fixed point for Student-t.
        Arguments are those of `bound`.
        """
        second_moment = (y - mu).square() + var
        for _ in range(_ROUNDS if self.log_excess_dof is not None else 1):
            weighted = (self.row_weights(h, mu, var, y) * second_moment).mean(0)
            # A fit without any residual would leave a density without a bound.
            self.log_scale.copy_(0.5 * weighted.clamp_min(1e-12).log())

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply the standard deviation of the noise by a positive number, everywhere."""
        self.log_scale.add_(math.log(factor))

    def tensors(self) -> dict[str, Tensor]:
        """Return all that defines the noise, by its name in a head; they share their memory."""
        return {f"noise.{name}": tensor for name, tensor in self.state_dict().items()}

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"

    def _dof(self) -> Tensor:
        return _LEAST_DOF + self.log_excess_dof.exp()  # pyright: ignore[reportOptionalMemberAccess]

    def _log_variance_moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = self.log_variance.moments(h)  # pyright: ignore[reportOptionalMemberAccess]
        return mean + 2 * self.log_scale, var
