"""Generative last layer: Gaussian classes in a few principal axes of the features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError
from bayestune.head import checks
from bayestune.head.precision import full_precision, no_autocast
from bayestune.posterior import classes, diagonal, generative, projection
from bayestune.posterior.normals import seeded_normals
from bayestune.posterior.predictive import Predictive

#: Numbers (S, K, P) in the draws of the class means behind the mutual information.
_BUDGET = 2**21


class GenerativeHead(nn.Module):
    """x | y=k ~ N(μ_k, Σ) with q(μ_k) = N(m_k, S_k) and class prior π, in P axes of φ.

    It predicts by Bayes' rule and knows how dense its training features lie around an input. The
    axes, in which features have unit variance, are measured by `start`; they keep the logits on one
    scale whatever D is.

    Args:
        in_features: feature dimension D.
        num_classes: number of classes K.
        axes: the most axes P; `start` takes fewer from few rows, see `posterior.projection`.
        prior_scale: prior variance τ² of the class means, in units of the features' own variance.
        learn_prior: whether τ² is fitted as well.

    Attributes:
        means: posterior means m in the axes, parameter, ``(K, P)``.
        log_scale: logarithms of their standard deviations, parameter, ``(K, P)``.
        log_noise: log σ², parameter, ``(P,)``.
        log_class_prior: log π, buffer, ``(K,)``.
        log_prior_variance: log τ², buffer, scalar.
        log_temperature: log T of what was folded in since, buffer, scalar.

    Raises:
        ConfigError: an argument is out of range.

    Source: Harrison et al., Variational Bayesian last layers (arXiv 2404.11599).
    """

    is_bayes_head = True
    family = "generative"
    point = False

    means: nn.Parameter
    log_scale: nn.Parameter
    log_noise: nn.Parameter
    centre: Tensor
    directions: Tensor
    deviations: Tensor
    rest: Tensor
    log_class_prior: Tensor
    log_prior_variance: Tensor
    log_temperature: Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        axes: int = 128,
        prior_scale: float = 1.0,
        learn_prior: bool = False,
    ) -> None:
        super().__init__()
        checks.require_sizes(num_classes, in_features)
        checks.require_positive("prior_scale", prior_scale)
        if axes < 1:
            raise ConfigError(f"axes is {axes!r}; a generative head needs at least 1.")
        self.in_features, self.num_classes = in_features, num_classes
        self.axes, self.prior_scale, self.learn_prior = axes, prior_scale, learn_prior
        self.register_buffer("centre", torch.zeros(in_features))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("log_class_prior", torch.full((num_classes,), -math.log(num_classes)))
        self.register_buffer("log_prior_variance", torch.tensor(math.log(prior_scale)))
        self.register_buffer("log_temperature", torch.zeros(()))
        self._resize(min(axes, in_features))

    @property
    def projection(self) -> projection.Projection:
        """The axes, and what the features spread along and off them."""
        return projection.Projection(self.centre, self.directions, self.deviations, self.rest)

    @torch.no_grad()
    def start(self, phi: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Measure the axes and take the exact posterior of the class means in them.

        Noise and, with ``learn_prior``, τ² are fitted by empirical Bayes. Nothing is iterated over
        the features: counts, sums and squares say it all.

        Args:
            phi: training features, ``(N, D)``.
            labels: class indices, ``(N,)``.
            weights: factors on the rows, ``(N,)``.

        Raises:
            NumericsError: the features are not finite or all equal.
        """
        phi = _wide(full_precision(phi, self.centre.unsqueeze(0)))
        measured = projection.measure(phi, self.axes, self.num_classes - 1)
        self._resize(measured.axes.shape[1])
        x = projection.project(phi, measured)
        statistics = classes.Statistics.of(x, labels, self.num_classes, weights)
        tau = x.new_tensor(self.prior_scale)
        self._fit(statistics, tau)
        self.log_temperature.zero_()
        for old, new in zip(self.projection, measured, strict=True):
            old.copy_(new)

    @torch.no_grad()
    def absorb(self, phi: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Take the exact posterior of all rows so far and these, in the axes as they were measured.

        What is stored says counts, sums and squares of the earlier rows, see `classes.recover`. A
        temperature must not be folded in.

        Args:
            phi: features of the new rows, ``(N, D)``.
            labels: class indices, ``(N,)``.
            weights: factors on the rows, ``(N,)``.
        """
        phi = _wide(full_precision(phi, self.centre.unsqueeze(0)))
        axes = projection.Projection(*(part.to(phi) for part in self.projection))
        x = projection.project(phi, axes)
        tau = self.log_prior_variance.to(x).exp()
        mean, scale, noise, _ = self._model(x)
        earlier = classes.recover(classes.Fit(mean, scale, noise, tau))
        new = classes.Statistics.of(x, labels, self.num_classes, weights)
        self._fit(earlier + new, tau)

    def _fit(self, statistics: classes.Statistics, prior_variance: Tensor) -> None:
        found = classes.fit(statistics, prior_variance, learn_prior=self.learn_prior)
        self.means.copy_(found.mean)
        self.log_scale.copy_(found.scale.log())
        self.log_noise.copy_(found.noise.log())
        self.log_prior_variance.copy_(found.prior_variance.log())
        self.log_class_prior.copy_(classes.log_class_prior(statistics.counts))

    def forward(self, h: Tensor) -> Tensor:
        """Return log π_k + log N(x; m_k, S_k + Σ) ``(..., K)``; its softmax is the predictive."""
        x = self._project(h)
        with no_autocast(x):
            joint = generative.log_joint(x.reshape(-1, x.shape[-1]), *self._model(x))
            return joint.reshape(*x.shape[:-1], self.num_classes)

    def log_density(self, h: Tensor) -> Tensor:
        """Return log p(φ) = log Σ_k π_k p(φ | k) in nats ``(B,)``, a density of all D features."""
        wide = _wide(full_precision(h, self.centre.unsqueeze(0)))
        with no_autocast(wide):
            axes = projection.Projection(*(part.to(wide) for part in self.projection))
            x = projection.project(wide, axes)
            fitted = self._model(x, math.exp(-float(self.log_temperature)))
            joint = generative.log_joint(x, *fitted)
            return joint.logsumexp(-1) + projection.log_rest(wide, axes)

    def probs(self, h: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return the closed-form predictive ``(B, K)``, all covariances T times as large."""
        x = _wide(self._project(h))
        with no_autocast(x):
            joint = generative.log_joint(x, *self._model(x, temperature))
            return _present(joint, mask).softmax(-1)

    def predictive(
        self, h: Tensor, mask: Tensor | None = None, samples: int | None = None
    ) -> Predictive:
        """Predict in closed form; the mutual information is that of label and class means.

        Args:
            h: features, ``(B, D)``.
            mask: which classes exist for a row, bool ``(B, K)``.
            samples: draws of the class means behind the mutual information, whose relative error
                is about √(2/S); by default from 32 to 256, as many as the classes leave room for.
        """
        x = _wide(self._project(h))
        with no_autocast(x):
            model = self._model(x)
            shape = (samples or self._samples(), *self.means.shape)
            normals = seeded_normals(shape, 0, x.dtype, x.device)
            log_p = _present(generative.log_joint(x, *model), mask).log_softmax(-1)
            known = generative.information(x, *model, normals, mask)
        probs = log_p.exp()
        aleatoric = -(probs * log_p).sum(-1) - known
        return Predictive.split(probs.to(self.means), aleatoric.to(self.means))

    def bound(
        self,
        h: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the bound on the expected log likelihood of each label, ``(B,)``.

        Args:
            h: features, ``(B, D)``.
            labels: class indices, ``(B,)``.
            mask: which classes exist for a row, bool ``(B, K)``.
            weights: factors on the examples, ``(B,)``.
        """
        x = self._project(h)
        with no_autocast(x):
            bound = generative.bound(x, labels, *self._model(x), mask)
        return bound if weights is None else weights * bound

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) less the log prior of the noise, in nats, a scalar."""
        with no_autocast(self.means):
            tau = self.log_prior_variance.exp()
            divergence = diagonal.kl(self.means, self.log_scale.exp(), tau.new_zeros(()), tau)
            return divergence - classes.log_noise_prior(self.log_noise.exp())

    @torch.no_grad()
    def update_prior(self) -> None:
        """Set τ² to the value that maximises the ELBO; without ``learn_prior`` do nothing."""
        if self.learn_prior:
            scale, centre = self.log_scale.exp(), self.means.new_zeros(())
            best = diagonal.prior_variance(self.means, scale, centre)
            self.log_prior_variance.copy_(best.log())

    def lr_factors(self) -> dict[str, float]:
        """Return the factor on the learning rate of each parameter: features have unit variance."""
        return {"means": 1.0, "log_scale": 1.0, "log_noise": 1.0}

    @torch.no_grad()
    def fold_temperature(self, temperature: float) -> None:
        """Multiply noise and posterior covariances by T for good; the class prior stays.

        Where all classes have the same S_k and π_k this divides all logits by T. T is about labels:
        `log_density` stays that of the features.
        """
        checks.require_positive("temperature", temperature)
        self.log_noise.add_(math.log(temperature))
        self.log_scale.add_(0.5 * math.log(temperature))
        self.log_temperature.add_(math.log(temperature))

    def posterior_tensors(self) -> dict[str, Tensor]:
        """Return all that defines the posterior, by name, for storage."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def load_posterior(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `posterior_tensors` returned, in as many axes as it has.

        Raises:
            StoreError: a tensor is missing, unknown or of another shape.
        """
        P = tensors["means"].shape[-1] if "means" in tensors and tensors["means"].ndim else 0
        checks.match(tensors, {self.family: self._shapes(P)})
        self._resize(P)
        for name in self._shapes(P):
            getattr(self, name).copy_(tensors[name])

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"axes={self.means.shape[1]}"
        )

    def _project(self, h: Tensor) -> Tensor:
        h = full_precision(h, self.centre.unsqueeze(0))
        with no_autocast(h):
            return projection.project(h, self.projection)

    def _model(self, x: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return means, deviations, noise and log class prior in the dtype of x."""
        scale = self.log_scale.exp() * math.sqrt(temperature)
        noise = self.log_noise.exp() * temperature
        return self.means.to(x), scale.to(x), noise.to(x), self.log_class_prior.to(x)

    def _samples(self) -> int:
        return min(max(2 ** int(math.log2(_BUDGET / self.means.numel())), 32), 256)

    def _shapes(self, P: int) -> dict[str, tuple[int, ...]]:
        K, D = self.num_classes, self.in_features
        return {
            **{"means": (K, P), "log_scale": (K, P), "log_noise": (P,)},
            **{"centre": (D,), "directions": (D, P), "deviations": (P,), "rest": ()},
            **{"log_class_prior": (K,), "log_prior_variance": (), "log_temperature": ()},
        }

    @torch.no_grad()
    def _resize(self, P: int) -> None:
        """Start from the prior, in the first P features, where P is another than it was."""
        if hasattr(self, "means") and self.means.shape[1] == P:
            return
        like = self.centre
        shape = (self.num_classes, P)
        self.means = nn.Parameter(like.new_zeros(shape))
        self.log_scale = nn.Parameter(like.new_full(shape, 0.5 * math.log(self.prior_scale)))
        self.log_noise = nn.Parameter(like.new_zeros(P))
        self.register_buffer("directions", torch.eye(self.in_features, P).to(like))
        self.register_buffer("deviations", like.new_ones(P))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # A checkpoint has as many axes as its training rows allowed.
        if f"{prefix}means" in state_dict:
            self._resize(state_dict[f"{prefix}means"].shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _wide(x: Tensor) -> Tensor:
    """Return features in float64, where the device has it: squares of far ones cancel."""
    return x if x.device.type == "mps" else x.double()


def _present(joint: Tensor, mask: Tensor | None) -> Tensor:
    return joint if mask is None else joint.masked_fill(~mask, -1e30)
