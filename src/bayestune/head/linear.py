"""Point last layer with the interface of the Bayesian one: no variance, no divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bayestune.head import checks, energy
from bayestune.head.precision import full_precision, no_autocast
from bayestune.posterior import bounds

if TYPE_CHECKING:
    from bayestune.head.noise import Noise


class LinearHead(nn.Module):
    """Deterministic logits z = Wh without bias, in float32.

    Args:
        in_features: feature dimension D.
        num_classes: number of classes (or of numbers) K.
        rows: initial weights, ``(K, D)``; zeros, hence equal probabilities, where absent.
        feature_energy: E‖h‖² where it is known already; see `set_feature_energy`.
        noise: what is around a number; None for classes.
        prior_scale: of the Gaussian prior of a MAP estimate; None without one.

    Attributes:
        weight: parameter, ``(K, D)``.
        feature_energy: E‖h‖² over the training features, buffer, scalar, NaN until measured.

    Raises:
        ConfigError: a size is out of range, or ``rows`` has another shape.
    """

    is_bayes_head = True
    family = "point"
    point = True

    feature_energy: Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        rows: Tensor | None = None,
        feature_energy: float | None = None,
        noise: Noise | None = None,
        prior_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.num_classes = in_features, num_classes
        self.noise, self.prior_scale = noise, prior_scale
        self.weight = nn.Parameter(checks.starting_rows(rows, num_classes, in_features))
        self.register_buffer("feature_energy", torch.tensor(math.nan))
        if feature_energy is not None:
            self.set_feature_energy(feature_energy)

    @torch.no_grad()
    def set_feature_energy(self, h_or_value: Tensor | float) -> None:
        """Measure E‖h‖² on training features ``(N, D)``, or set it; it scales the learning rate."""
        measured = energy.measure(h_or_value)
        self.feature_energy.fill_(measured)
        if self.noise is not None:
            self.noise.set_feature_energy(measured)

    def start(self, phi: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Set all scales by training features ``(N, D)``; labels and weights are not looked at."""
        self.set_feature_energy(phi)

    def lr_factors(self) -> dict[str, float]:
        """Return the factor on the learning rate of each parameter."""
        measured = energy.known(self.feature_energy)
        factors = {"weight": energy.lr_factor(measured, self.in_features)}
        if self.noise is not None:
            factors |= {f"noise.{name}": f for name, f in self.noise.lr_factors().items()}
        return factors

    def forward(self, h: Tensor) -> Tensor:
        """Return logits ``(..., K)`` for features ``(..., D)``."""
        h = full_precision(h, self.weight)
        with no_autocast(h):
            return h @ self.weight.T

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and zeros for their variance, each ``(..., K)``."""
        mu = self(h)
        return mu, torch.zeros_like(mu)

    def bound(
        self,
        h: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the log likelihood of each example in nats, ``(B,)``.

        Args:
            h: features, ``(B, D)``.
            labels: class indices ``(B,)``, or numbers ``(B, K)``.
            mask: which classes exist for a row, bool ``(B, K)``.
            weights: factors on the examples, ``(B,)``.
        """
        mu, var = self.moments(h)
        if self.noise is None:
            checks.require_classes(self.num_classes)
            log_likelihood = bounds.jensen(mu, var, labels, mask)
        else:
            with no_autocast(mu):
                log_likelihood = self.noise.bound(full_precision(h, self.weight), mu, var, labels)
        return log_likelihood if weights is None else weights * log_likelihood

    def kl(self) -> Tensor:
        """Return ``‖W‖² / 2σ₀²``, 0 without a prior; and the divergence of the noise, if any."""
        penalty = self.weight.new_zeros(())
        if self.prior_scale is not None:
            measured = energy.known(self.feature_energy)
            variance = energy.prior_variance(measured, self.num_classes, self.prior_scale)
            penalty = self.weight.square().sum() / (2 * variance)
        return penalty if self.noise is None else penalty + self.noise.kl()

    def update_prior(self) -> None:
        """Do nothing: a point has no prior."""

    @torch.no_grad()
    def fold_temperature(self, temperature: float) -> None:
        """Divide all logits by T for good, or multiply the deviation of the noise by it."""
        checks.require_positive("temperature", temperature)
        if self.noise is not None:
            self.noise.rescale(temperature)
            return
        self.weight.div_(temperature)

    def posterior_tensors(self) -> dict[str, Tensor]:
        """Return all that is to be stored beside ``weight``, by name."""
        noise = {} if self.noise is None else self.noise.tensors()
        return {"feature_energy": self.feature_energy.detach(), **noise}

    @torch.no_grad()
    def load_posterior(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `posterior_tensors` returned.

        Raises:
            StoreError: the tensors are not those of a point head.
        """
        own = self.posterior_tensors()
        checks.match(tensors, {self.family: {name: tuple(t.shape) for name, t in own.items()}})
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}"
