"""Bayesian last layer: a Gaussian over the rows of a linear classifier on raw features.

Prior variance, initial deviation and step size follow from the mean energy E‖h‖² of the training
features, see `bayestune.head.energy`: they mean the same on every backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError, nearest
from bayestune.head import checks, energy
from bayestune.head.precision import full_precision, no_autocast
from bayestune.posterior import bounds, dense, diagonal

Prior = Literal["zero", "pretrained"]
Family = Literal["diagonal", "dense"]
Bound = Literal["jensen", "tilted", "exact", "monte_carlo"]

#: Draws per example and step of ``bound="monte_carlo"``: in K dimensions they cost next to nothing.
_DRAWS = 8


class GaussianHead(nn.Module):
    """q(W) = Π_k N(w_k; weight_k, S_k), logits z = Wh, S_k diagonal or, after a refresh, dense.

    Args:
        in_features: feature dimension D.
        num_classes: number of classes K.
        prior: centre of the prior: ``"zero"``, or the pretrained ``rows``.
        rows: rows of a pretrained output layer for the K classes, ``(K, D)``.
        prior_scale: prior logit variance relative to 2 · max(1, ln K).
        init_scale: initial standard deviation of a logit at a typical input.
        bound: how the expected log likelihood is bounded or estimated, see `posterior.bounds`.
        learn_prior: whether `update_prior` moves the prior variance to its optimum.
        feature_energy: E‖h‖² where it is known already; see `set_feature_energy`.

    Attributes:
        weight: posterior mean in raw feature units, parameter, ``(K, D)``.
        log_scale: log posterior standard deviation in raw feature units, parameter, ``(K, D)``.
        factor: covariance factors of the dense family, buffer, ``(K, D, D)`` or None.
        prior_mean: buffer, ``(K, D)``.
        log_prior_variance: log σ₀², buffer, scalar.
        feature_energy: E‖h‖² over the training features, buffer, scalar, NaN until measured (the
            scales then stand at what D would give).

    Raises:
        ConfigError: an argument is out of range, or ``rows`` and ``prior`` do not go together.
        ModelError: training is tried (`kl`, `lr_factors`) before the feature energy is set.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599).
    """

    is_bayes_head = True

    weight: nn.Parameter
    log_scale: nn.Parameter
    factor: Tensor | None
    prior_mean: Tensor
    log_prior_variance: Tensor
    feature_energy: Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        prior: Prior = "zero",
        rows: Tensor | None = None,
        prior_scale: float = 1.0,
        init_scale: float = 0.5,
        bound: Bound = "jensen",
        learn_prior: bool = False,
        feature_energy: float | None = None,
    ) -> None:
        super().__init__()
        if prior not in get_args(Prior):
            raise ConfigError(f"Unknown prior {prior!r}.{nearest(prior, get_args(Prior))}")
        if bound not in get_args(Bound):
            raise ConfigError(f"Unknown bound {bound!r}.{nearest(bound, get_args(Bound))}")
        if (prior == "pretrained") != (rows is not None):
            given = "none were given" if rows is None else "rows were given"
            raise ConfigError(
                f"prior={prior!r} but {given}: pass rows (K, D) with prior='pretrained' only."
            )
        checks.require_positive("prior_scale", prior_scale)
        checks.require_positive("init_scale", init_scale)
        self.in_features, self.num_classes = in_features, num_classes
        self.prior, self.prior_scale, self.init_scale = prior, prior_scale, init_scale
        self.likelihood, self.learn_prior = bound, learn_prior
        centre = checks.starting_rows(rows, num_classes, in_features)
        self.weight = nn.Parameter(centre.clone())
        self.log_scale = nn.Parameter(torch.empty_like(centre))
        self.register_buffer("factor", None)
        self.register_buffer("prior_mean", centre)
        self.register_buffer("log_prior_variance", torch.empty(()))
        self.register_buffer("feature_energy", torch.tensor(math.nan))
        self._set_scales(float(in_features))
        if feature_energy is not None:
            self.set_feature_energy(feature_energy)

    @property
    def family(self) -> Family:
        """Which covariance the posterior has now."""
        return "diagonal" if self.factor is None else "dense"

    @property
    def _spread(self) -> Tensor:
        return self.log_scale.exp() if self.factor is None else self.factor

    @property
    def _posterior(self):
        return diagonal if self.factor is None else dense

    @torch.no_grad()
    def set_feature_energy(self, h_or_value: Tensor | float) -> None:
        """Measure E‖h‖² and set prior variance and initial deviation by it, before training.

        A dense posterior becomes diagonal again: only that family is trained.

        Args:
            h_or_value: training features ``(N, D)``, or the energy itself.

        Raises:
            NumericsError: the energy is zero, NaN or infinite.
        """
        measured = energy.measure(h_or_value)
        self.feature_energy.fill_(measured)
        self.factor = None
        self._set_scales(measured)

    def lr_factors(self) -> dict[str, float]:
        """Return the factor on the learning rate of each parameter; ``log_scale`` needs none."""
        measured = energy.known(self.feature_energy)
        return {"weight": energy.lr_factor(measured, self.in_features), "log_scale": 1.0}

    def forward(self, h: Tensor) -> Tensor:
        """Return mean logits ``(..., K)`` for features ``(..., D)``."""
        h = full_precision(h, self.weight)
        with no_autocast(h):
            return h @ self.weight.T

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the logits, each ``(..., K)``, for features ``(..., D)``."""
        h = full_precision(h, self.weight)
        with no_autocast(h):
            return self._posterior.logit_moments(h, self.weight, self._spread)

    def bound(
        self,
        h: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the bound on the expected log likelihood of each example, or its estimate.

        Args:
            h: features, ``(B, D)``.
            labels: class indices, ``(B,)``.
            mask: which classes exist for a row, bool ``(B, K)``.
            weights: factors on the examples, ``(B,)``.

        Returns:
            The bound in nats, ``(B,)``; with ``bound="monte_carlo"`` it draws from the global
            generator.
        """
        mu, var = self.moments(h)
        with no_autocast(mu):
            if self.likelihood == "monte_carlo":
                noise = torch.randn((_DRAWS, *mu.shape), dtype=mu.dtype, device=mu.device)
                bound = bounds.monte_carlo(mu, var, labels, noise, mask)
            else:
                bound = getattr(bounds, self.likelihood)(mu, var, labels, mask)
        return bound if weights is None else weights * bound

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) in nats, a scalar; the ELBO of N examples takes it once."""
        energy.known(self.feature_energy)
        variance = self.log_prior_variance.exp()
        with no_autocast(self.weight):
            return self._posterior.kl(self.weight, self._spread, self.prior_mean, variance)

    @torch.no_grad()
    def update_prior(self) -> None:
        """Set σ₀² to the value that maximises the ELBO; without ``learn_prior`` do nothing."""
        if self.learn_prior:
            optimum = self._posterior.prior_variance(self.weight, self._spread, self.prior_mean)
            self.log_prior_variance.copy_(optimum.log())

    @torch.no_grad()
    def fold_temperature(self, temperature: float) -> None:
        """Divide all logits by T for good: softmax(z / T) becomes softmax(z), draw by draw.

        Means and standard deviations of posterior and prior are divided alike, which leaves the
        KL unchanged.

        Args:
            temperature: T, positive.
        """
        checks.require_positive("temperature", temperature)
        self.weight.div_(temperature)
        self.prior_mean.div_(temperature)
        self.log_scale.sub_(math.log(temperature))
        self.log_prior_variance.sub_(2 * math.log(temperature))
        if self.factor is not None:
            self.factor.div_(temperature)

    @torch.no_grad()
    def set_diagonal(self, scale: Tensor) -> None:
        """Make the posterior diagonal with standard deviations ``(K, D)``."""
        self.load_posterior({**self._prior_tensors(), "log_scale": scale.log()})

    @torch.no_grad()
    def set_dense(self, factor: Tensor) -> None:
        """Make the posterior dense with covariance factors ``(K, D, D)``.

        ``log_scale`` keeps the marginal standard deviations, the diagonal reading of the factors.
        """
        self.load_posterior({**self._prior_tensors(), "factor": factor})

    def posterior_tensors(self) -> dict[str, Tensor]:
        """Return all that defines the posterior beside ``weight``, by name, for storage."""
        if self.factor is None:
            return {**self._prior_tensors(), "log_scale": self.log_scale.detach()}
        return {**self._prior_tensors(), "factor": self.factor}

    @torch.no_grad()
    def load_posterior(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `posterior_tensors` returned; the family follows from the names.

        Raises:
            StoreError: a tensor is missing, unknown or of another shape.
        """
        K, D = self.weight.shape
        prior = {"prior_mean": (K, D), "log_prior_variance": (), "feature_energy": ()}
        families = {
            "diagonal": {**prior, "log_scale": (K, D)},
            "dense": {**prior, "factor": (K, D, D)},
        }
        if checks.match(tensors, families) == "diagonal":
            self.factor = None
            self.log_scale.copy_(tensors["log_scale"])
        else:
            factor = tensors["factor"].to(self.weight)
            self.factor = factor.clone(memory_format=torch.contiguous_format)
            self.log_scale.copy_(dense.marginal_scale(self.factor).log())
        for name in prior:
            getattr(self, name).copy_(tensors[name])

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"family={self.family!r}, prior={self.prior!r}"
        )

    @torch.no_grad()
    def _set_scales(self, value: float) -> None:
        variance = energy.prior_variance(value, self.num_classes, self.prior_scale)
        self.log_prior_variance.fill_(math.log(variance))
        self.log_scale.fill_(math.log(energy.initial_scale(value, self.init_scale)))

    def _prior_tensors(self) -> dict[str, Tensor]:
        names = ("prior_mean", "log_prior_variance", "feature_energy")
        return {name: getattr(self, name) for name in names}
