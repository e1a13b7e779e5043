"""Ordinal last layer: one Gaussian row scores a feature, cut points divide the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError
from bayestune.head import checks
from bayestune.head.gaussian import GaussianHead
from bayestune.head.linear import LinearHead
from bayestune.head.precision import no_autocast
from bayestune.posterior import ordinal
from bayestune.posterior.predictive import Predictive

_ROW = "row."


class OrdinalHead(nn.Module):
    """P(y ≤ k | f) = σ(b_k − f) with f = wᵀφ and q(w) one row of a `GaussianHead`, or a point.

    Args:
        in_features: feature dimension D.
        num_classes: number of ordered classes K.
        prior_scale: prior variance of the score relative to 2 (K − 1)².
        init_scale: initial standard deviation of the score at a typical input.
        point: whether w is a point, for maximum likelihood, and the row a `LinearHead`.
        **options: ``covariance``, ``columns`` and ``learn_prior`` of `GaussianHead`.

    Attributes:
        row: the distribution over w, or the point.
        first: the lowest cut point b_1, parameter, scalar.
        gaps: b_{k+1} − b_k = softplus(gaps_k), parameter, ``(K − 2,)``.

    Raises:
        ConfigError: an argument is out of range.

    Source: McCullagh, Regression models for ordinal data (1980); the posterior as in Harrison et
    al., Variational Bayesian last layers (arXiv 2404.11599).
    """

    is_bayes_head = True
    family = "ordinal"

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        prior_scale: float = 1.0,
        init_scale: float = 0.5,
        point: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        checks.require_sizes(num_classes, in_features)
        checks.require_positive("prior_scale", prior_scale)
        self.in_features, self.num_classes = in_features, num_classes
        # Every class but the outer ones is an interval as wide as its predictions are sure.
        self.unit = num_classes - 1
        self.prior_scale = prior_scale * self.unit**2
        self.row = self._new_row(point, init_scale=init_scale, **options)
        self.first = nn.Parameter(torch.zeros(()))
        self.gaps = nn.Parameter(torch.zeros(num_classes - 2))
        self._set_cuts(ordinal.start_cuts(torch.ones(num_classes)))

    @property
    def point(self) -> bool:
        """Whether there is no distribution over w."""
        return self.row.point

    @property
    def weight(self) -> nn.Parameter:
        """Posterior mean of w, ``(1, D)``."""
        return self.row.weight

    @property
    def cuts(self) -> Tensor:
        """The cut points b, ascending, ``(K − 1,)``."""
        steps = nn.functional.softplus(self.gaps).cumsum(0)
        return torch.cat([self.first.reshape(1), self.first + steps])

    @torch.no_grad()
    def start(self, phi: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Set all scales by training features ``(N, D)`` and the cut points by class shares."""
        self.row.set_feature_energy(phi)
        omega = None if weights is None else weights.to(self.first)
        counts = torch.bincount(labels, omega, minlength=self.num_classes)
        self._set_cuts(ordinal.start_cuts(counts.to(self.first)))

    def lr_factors(self) -> dict[str, float]:
        """Return the factor on the learning rate of each parameter; cut points span K classes."""
        row = {f"{_ROW}{name}": factor for name, factor in self.row.lr_factors().items()}
        return {"first": float(self.unit), "gaps": float(self.unit), **row}

    def forward(self, h: Tensor) -> Tensor:
        """Return log P(y = k) at the mean score ``(..., K)``, for features ``(..., D)``."""
        score = self.row(h).squeeze(-1)
        with no_autocast(score):
            return ordinal.log_probs(score, self.cuts)

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the score, each ``(..., 1)``, for features ``(..., D)``."""
        return self.row.moments(h)

    @torch.no_grad()
    def at(self, mu: Tensor, var: Tensor | None, temperature: float = 1.0) -> Predictive:
        """Predict from moments ``(B, 1)`` of the score, score and cut points divided by T."""
        if var is None:
            log_p = ordinal.log_probs(mu.flatten() / temperature, self.cuts / temperature)
            return Predictive.from_point(log_p)
        with no_autocast(mu):
            mu, var = mu.flatten() / temperature, var.flatten() / temperature**2
            return Predictive.split(*ordinal.expected_probs(mu, var, self.cuts / temperature))

    @torch.no_grad()
    def likelihood(
        self, mu: Tensor, var: Tensor, labels: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return what `at` gives the label of each row, ``(B,)``, at the cost of two classes."""
        with no_autocast(mu):
            mu, var = mu.flatten() / temperature, var.flatten() / temperature**2
            return ordinal.expected_likelihood(mu, var, labels, self.cuts / temperature)

    def predictive(self, h: Tensor) -> Predictive:
        """Predict features ``(B, D)``, by quadrature over the score."""
        mu, var = self.moments(h)
        return self.at(mu, None if self.point else var)

    def bound(
        self,
        h: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the expected log likelihood of each example, exact, ``(B,)``.

        Args:
            h: features, ``(B, D)``.
            labels: class indices, ``(B,)``.
            mask: must be None, all classes of an order exist.
            weights: factors on the examples, ``(B,)``.
        """
        if mask is not None:
            raise ConfigError("All classes of an order exist: an ordinal head takes no mask.")
        mu, var = self.moments(h)
        with no_autocast(mu):
            mu, var = mu.squeeze(-1), var.squeeze(-1)
            expected = ordinal.expected_log_likelihood(mu, var, labels, self.cuts)
        return expected if weights is None else weights * expected

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) of w in nats, a scalar; cut points are parameters without a prior."""
        return self.row.kl()

    def update_prior(self) -> None:
        """Set the prior variance of w to its optimum; without ``learn_prior`` do nothing."""
        self.row.update_prior()

    @torch.no_grad()
    def fold_temperature(self, temperature: float) -> None:
        """Divide score and cut points by T for good."""
        self.row.fold_temperature(temperature)
        self._set_cuts(self.cuts / temperature)

    def posterior_tensors(self) -> dict[str, Tensor]:
        """Return all that defines the posterior beside ``weight``, by name, for storage."""
        row = {f"{_ROW}{name}": t for name, t in self.row.posterior_tensors().items()}
        return {"first": self.first.detach(), "gaps": self.gaps.detach(), **row}

    @torch.no_grad()
    def load_posterior(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `posterior_tensors` returned; whether w is a point follows from the names.

        Raises:
            StoreError: a tensor is missing, unknown or of another shape.
        """
        own = {name: t for name, t in tensors.items() if not name.startswith(_ROW)}
        checks.match(own, {self.family: {"first": (), "gaps": (self.num_classes - 2,)}})
        row = {n.removeprefix(_ROW): t for n, t in tensors.items() if n.startswith(_ROW)}
        point = row.keys() == {"feature_energy"}
        if point != self.point:
            self.row = self._new_row(point).to(self.first.device)
        self.row.load_posterior(row)
        self.first.copy_(own["first"])
        self.gaps.copy_(own["gaps"])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}"

    def _new_row(self, point: bool, **options: Any) -> GaussianHead | LinearHead:
        if point:
            return LinearHead(in_features=self.in_features, num_classes=1)
        return GaussianHead(
            in_features=self.in_features, num_classes=1, prior_scale=self.prior_scale, **options
        )

    @torch.no_grad()
    def _set_cuts(self, cuts: Tensor) -> None:
        self.first.copy_(cuts[0])
        gaps = cuts.diff().clamp_min(1e-6)
        self.gaps.copy_(gaps + torch.log(-torch.expm1(-gaps)))  # the inverse of softplus
