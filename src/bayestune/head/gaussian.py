"""Bayesian last layer: a Gaussian over the rows of a linear classifier on raw features.

Prior variance, initial deviation and step size follow from the mean energy E‖h‖² of the training
features, see `bayestune.head.energy`: they mean the same on every backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError, ModelError, nearest
from bayestune.head import checks, energy
from bayestune.head.families import FAMILIES, MEASURED, TRAINED, Name, eigenbasis
from bayestune.head.precision import full_precision, no_autocast
from bayestune.posterior import bounds

if TYPE_CHECKING:
    from bayestune.head.noise import Noise

Prior = Literal["zero", "pretrained"]
Bound = Literal["jensen", "tilted", "exact", "monte_carlo"]

#: Draws per example and step of ``bound="monte_carlo"``: in K dimensions they cost next to nothing.
_DRAWS = 8


class GaussianHead(nn.Module):
    """q(W) = Π_k N(w_k; weight_k, S_k), logits z = Wh, S_k of one of the covariance families.

    With a noise the outputs are the latent means of numbers instead: the same posterior under
    another likelihood.

    Args:
        in_features: feature dimension D.
        num_classes: number of classes (or of numbers) K; 1 for the score of ordered classes.
        prior: centre of the prior: ``"zero"``, or the pretrained ``rows``.
        rows: rows of a pretrained output layer for the K classes, ``(K, D)``.
        prior_scale: prior logit variance relative to 2 · max(1, ln K).
        init_scale: initial standard deviation of a logit at a typical input.
        covariance: the family that is trained, see `head.families`; a refresh may bring another.
        columns: columns R of the low-rank family.
        bound: how the expected log likelihood is bounded or estimated, see `posterior.bounds`.
        learn_prior: whether `update_prior` moves the prior variance to its optimum.
        feature_energy: E‖h‖² where it is known already; see `set_feature_energy`.
        noise: what is around a number; None for classes.

    Attributes:
        weight: posterior mean in raw feature units, parameter, ``(K, D)``.
        family: the covariance the posterior has now. Its tensors are attributes by their names in
            `head.families`, in raw feature units.
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
    point = False

    family: Name = "diagonal"
    weight: nn.Parameter
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
        covariance: Name = "diagonal",
        columns: int = 4,
        bound: Bound = "jensen",
        learn_prior: bool = False,
        feature_energy: float | None = None,
        noise: Noise | None = None,
    ) -> None:
        super().__init__()
        if prior not in get_args(Prior):
            raise ConfigError(f"Unknown prior {prior!r}.{nearest(prior, get_args(Prior))}")
        if covariance not in TRAINED:
            raise ConfigError(f"Unknown covariance {covariance!r}.{nearest(covariance, TRAINED)}")
        if bound not in get_args(Bound):
            raise ConfigError(f"Unknown bound {bound!r}.{nearest(bound, get_args(Bound))}")
        if (prior == "pretrained") != (rows is not None):
            given = "none were given" if rows is None else "rows were given"
            raise ConfigError(
                f"prior={prior!r} but {given}: pass rows (K, D) with prior='pretrained' only."
            )
        checks.require_positive("prior_scale", prior_scale)
        checks.require_positive("init_scale", init_scale)
        checks.require_positive("columns", columns)
        self.in_features, self.num_classes = in_features, num_classes
        self.prior, self.prior_scale, self.init_scale = prior, prior_scale, init_scale
        self.covariance: Name = covariance
        self.columns = columns
        self.likelihood, self.learn_prior = bound, learn_prior
        self.noise = noise
        centre = checks.starting_rows(rows, num_classes, in_features)
        self.weight = nn.Parameter(centre.clone())
        self.register_buffer("prior_mean", centre)
        self.register_buffer("log_prior_variance", torch.empty(()))
        self.register_buffer("feature_energy", torch.tensor(math.nan))
        self._set_scales(float(in_features))
        if feature_energy is not None:
            self.set_feature_energy(feature_energy)

    @property
    def spread(self) -> Any:
        """The posterior's spread as the mathematics of its family takes it."""
        return FAMILIES[self.family].spread(self._spread_tensors())

    @property
    def correlated(self) -> bool:
        """Whether the logits of different classes are correlated."""
        return FAMILIES[self.family].correlated

    @property
    def _posterior(self) -> ModuleType:
        return FAMILIES[self.family].posterior

    @torch.no_grad()
    def set_feature_energy(self, h_or_value: Tensor | float) -> None:
        """Measure E‖h‖² and set prior variance and initial deviation by it, before training.

        A refreshed posterior becomes one of the family that is trained again; the eigenbasis of
        that family is the features' own.

        Args:
            h_or_value: training features ``(N, D)``, or the energy itself.

        Raises:
            ModelError: the family needs the features themselves and an energy is given.
            NumericsError: the energy is zero, NaN or infinite.
        """
        measured = energy.measure(h_or_value)
        self.feature_energy.fill_(measured)
        self._set_scales(measured)
        if self.noise is not None:
            self.noise.set_feature_energy(measured)
        if self.covariance == "eigen":
            if not isinstance(h_or_value, Tensor) or h_or_value.ndim != 2:
                raise ModelError("covariance='eigen' is set by features (N, D), not by an energy.")
            self.basis = eigenbasis(full_precision(h_or_value, self.weight))

    def start(self, phi: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Set all scales by training features ``(N, D)``; labels and weights are not looked at."""
        self.set_feature_energy(phi)

    def lr_factors(self) -> dict[str, float]:
        """Return the factor on the learning rate of each parameter; logarithms need none.

        A covariance factor moves in units of its start, as a logarithm would.
        """
        measured = energy.known(self.feature_energy)
        factors = {"weight": energy.lr_factor(measured, self.in_features)}
        for name in self._spread_tensors().keys() - MEASURED:
            start = energy.initial_scale(measured, self.init_scale)
            factors[name] = start if name == "factor" else 1.0
        if self.noise is not None:
            factors |= {f"noise.{name}": f for name, f in self.noise.lr_factors().items()}
        return factors

    def forward(self, h: Tensor) -> Tensor:
        """Return mean logits ``(..., K)`` for features ``(..., D)``."""
        h = full_precision(h, self.weight)
        with no_autocast(h):
            return h @ self.weight.T

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the logits for features ``(..., D)``.

        Returns:
            Means ``(..., K)``, and variances ``(..., K)``, or covariances ``(..., K, K)`` where the
            family correlates the classes.
        """
        h = full_precision(h, self.weight)
        with no_autocast(h):
            if self.correlated:
                return h @ self.weight.T, self._posterior.logit_covariance(h, self.spread)
            return self._posterior.logit_moments(h, self.weight, self.spread)

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
            labels: class indices ``(B,)``, or numbers ``(B, K)``.
            mask: which classes exist for a row, bool ``(B, K)``.
            weights: factors on the examples, ``(B,)``.

        Returns:
            The bound in nats, ``(B,)``; with ``bound="monte_carlo"`` it draws from the global
            generator.
        """
        if self.noise is None:
            checks.require_classes(self.num_classes)
        if self.correlated:
            raise ModelError(
                f"The {self.family} covariance couples the classes and came with a refresh; no "
                "bound is trained on it. set_feature_energy starts the trained family anew."
            )
        mu, var = self.moments(h)
        with no_autocast(mu):
            if self.noise is not None:
                bound = self.noise.bound(full_precision(h, self.weight), mu, var, labels)
            elif self.likelihood == "monte_carlo":
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
            kl = self._posterior.kl(self.weight, self.spread, self.prior_mean, variance)
        return kl if self.noise is None else kl + self.noise.kl()

    @torch.no_grad()
    def update_prior(self) -> None:
        """Set σ₀² to the value that maximises the ELBO; without ``learn_prior`` do nothing."""
        if self.learn_prior:
            optimum = self._posterior.prior_variance(self.weight, self.spread, self.prior_mean)
            self.log_prior_variance.copy_(optimum.log())

    @torch.no_grad()
    def fold_temperature(self, temperature: float) -> None:
        """Divide all logits by T for good: softmax(z / T) becomes softmax(z), draw by draw.

        Means and standard deviations of posterior and prior are divided alike, which leaves the
        KL unchanged. With a noise T multiplies the standard deviations of posterior and noise, and
        so those of the predictive; the mean stays.

        Args:
            temperature: T, positive.
        """
        checks.require_positive("temperature", temperature)
        if self.noise is not None:
            self.scale_spread(temperature)
            self.noise.rescale(temperature)
            return
        self.weight.div_(temperature)
        self.prior_mean.div_(temperature)
        self.log_prior_variance.sub_(2 * math.log(temperature))
        self.scale_spread(1 / temperature)

    @torch.no_grad()
    def scale_spread(self, factor: float) -> None:
        """Multiply all standard deviations of the posterior by a positive number."""
        checks.require_positive("factor", factor)
        for name, tensor in self._spread_tensors().items():
            if name in ("log_scale", "log_rest"):
                tensor.add_(math.log(factor))
            elif name in ("factor", "root"):
                tensor.mul_(factor)

    @torch.no_grad()
    def set_spread(self, family: Name, **tensors: Tensor) -> None:
        """Give the posterior another covariance, in place of the one that was trained.

        Args:
            family: its family.
            **tensors: the tensors of that family, see `head.families`.

        Raises:
            StoreError: a tensor is missing, unknown or of another shape.
        """
        kept = {**self._prior_tensors(), **self._noise_tensors()}
        checks.match({**kept, **tensors}, {family: self._shapes(family, tensors)})
        self._install(family, tensors)

    def posterior_tensors(self) -> dict[str, Tensor]:
        """Return all that defines the posterior beside ``weight``, by name, for storage."""
        spread = {name: t.detach() for name, t in self._spread_tensors().items()}
        return {**self._prior_tensors(), **spread, **self._noise_tensors()}

    @torch.no_grad()
    def load_posterior(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `posterior_tensors` returned; the family follows from the names.

        Raises:
            StoreError: a tensor is missing, unknown or of another shape.
        """
        families = {str(name): self._shapes(name, tensors) for name in FAMILIES}
        family: Name = checks.match(tensors, families)  # pyright: ignore[reportAssignmentType]
        prior, noise = self._prior_tensors(), self._noise_tensors()
        kept = prior.keys() | noise.keys()
        self._install(family, {k: v for k, v in tensors.items() if k not in kept})
        for name, own in {**prior, **noise}.items():
            own.copy_(tensors[name])

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"family={self.family!r}, prior={self.prior!r}"
        )

    @torch.no_grad()
    def _set_scales(self, value: float) -> None:
        """Set prior variance and the start of the trained family by an energy."""
        variance = energy.prior_variance(value, self.num_classes, self.prior_scale)
        self.log_prior_variance.fill_(math.log(variance))
        start = energy.initial_scale(value, self.init_scale)
        sizes = self.num_classes, self.in_features, self.columns
        tensors = FAMILIES[self.covariance].start(*sizes, start)  # pyright: ignore[reportOptionalCall]
        self._install(self.covariance, tensors)

    @torch.no_grad()
    def _install(self, family: Name, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a family; those that fit are copied into the old ones."""
        present = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for name in FAMILIES[self.family].shapes(0, 0, 0):
            if name in present and (
                name not in tensors or present[name].shape != tensors[name].shape
            ):
                delattr(self, name)
        self.family = family
        for name, tensor in tensors.items():
            if hasattr(self, name):  # an optimiser may hold it
                getattr(self, name).copy_(tensor)
                continue
            value = tensor.detach().to(self.weight).clone(memory_format=torch.contiguous_format)
            if name in MEASURED:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def _spread_tensors(self) -> dict[str, Tensor]:
        names = FAMILIES[self.family].shapes(0, 0, 0)
        return {name: getattr(self, name) for name in names}

    def _shapes(self, family: Name, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of a stored posterior; the columns are as many as it has."""
        K, D = self.weight.shape
        columns = tensors["factor"].shape[-1] if "factor" in tensors else self.columns
        prior = {"prior_mean": (K, D), "log_prior_variance": (), "feature_energy": ()}
        noise = {name: tuple(t.shape) for name, t in self._noise_tensors().items()}
        return {**prior, **noise, **FAMILIES[family].shapes(K, D, columns)}

    def _prior_tensors(self) -> dict[str, Tensor]:
        names = ("prior_mean", "log_prior_variance", "feature_energy")
        return {name: getattr(self, name) for name in names}

    def _noise_tensors(self) -> dict[str, Tensor]:
        return {} if self.noise is None else self.noise.tensors()
