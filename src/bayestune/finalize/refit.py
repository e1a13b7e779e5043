"""The exact posterior of a last layer over numbers, at every precision of its prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayestune.finalize.features import Features
from bayestune.finalize.line import minimise
from bayestune.head import GaussianHead, Noise
from bayestune.posterior.conjugate import LinearRegression
from bayestune.posterior.regression import RegressionPredictive

#: Binary logarithms of σ in which the evidence is searched, first step and last one.
_RANGE, _STEP, _FINE = (-16.0, 4.0), 0.5, 0.005


class Refit:
    """The exact posterior of the last layer at every prior precision, in units of the prior's.

    What the noise knows about single rows is taken from the trained posterior.
    """

    def __init__(self, head: GaussianHead, noise: Noise, fit: Features, refresh: str) -> None:
        self.head, self.noise, self.diagonal = head, noise, refresh == "diagonal"
        self.unit = float(torch.exp(-head.log_prior_variance))
        self.trained = float(noise.log_scale.detach().exp())
        with torch.no_grad():
            mu, var = head.moments(fit.phi)
            weights = noise.row_weights(fit.phi, mu, var, fit.labels)
        self.rows = LinearRegression.of(fit.phi, fit.labels[:, 0], weights[:, 0])
        self._sigma: dict[float, float] = {}

    def sigma(self, value: float) -> float:
        """Return the scale of the noise of maximum evidence at a precision."""
        if value not in self._sigma:
            found: dict[float, float] = {}

            def loss(log2: float) -> float:
                if log2 not in found:
                    evidence = self.rows.log_evidence(2.0**log2, value * self.unit)
                    found[log2] = -float(evidence) / self.rows.count
                return found[log2]

            start = math.log2(self.trained)
            self._sigma[value] = 2.0 ** minimise(loss, start, _STEP, _FINE, _RANGE)
        return self._sigma[value]

    def log_evidence(self, value: float) -> float:
        """Return the log evidence at a precision, in nats."""
        return float(self.rows.log_evidence(self.sigma(value), value * self.unit))

    def moments(self, value: float) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviations (in the basis) at a precision, each ``(D,)``."""
        given = self.sigma(value), value * self.unit
        form = self.rows.diagonal_scale if self.diagonal else self.rows.scale
        return self.rows.mean(*given), form(*given)

    def predictive(self, phi: Tensor, value: float) -> RegressionPredictive:
        """Return the predictive of features ``(B, D)`` at a precision."""
        mean, scale = self.moments(value)
        rows = phi.double()
        turned = rows if self.diagonal else rows @ self.rows.basis
        mu, var = rows @ mean[:, None], turned.square() @ scale.square()[:, None]  # (B, 1)
        with torch.no_grad():
            noise = self.noise.variance(phi).double() * (self.sigma(value) / self.trained) ** 2
        return RegressionPredictive.from_moments(mu, var, noise, self.noise.dof)

    @torch.no_grad()
    def install(self, value: float) -> None:
        """Give the head mean, covariance and noise at a precision."""
        mean, scale = self.moments(value)
        self.head.weight.copy_(mean[None])
        if self.diagonal:
            self.head.set_spread("diagonal", log_scale=scale.log()[None])
        else:
            self.head.set_spread("eigen", log_scale=scale.log()[None], basis=self.rows.basis)
        self.noise.log_scale.fill_(math.log(self.sigma(value)))
