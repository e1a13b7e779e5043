"""From logits to probabilities and uncertainty: the only place where this happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError, NumericsError, nearest
from bayestune.posterior.closed_form import laplace_bridge, probit
from bayestune.posterior.logits import contrast_variances, present, variances
from bayestune.posterior.normals import default_samples
from bayestune.posterior.quadrature import expected_sigmoid, expected_softmax
from bayestune.posterior.sampling import sampled_softmax

Method = Literal["auto", "sample", "exact", "probit", "laplace_bridge"]

_NUMBERS = 2**20  # of the moments or draws handled at once: rows are independent


@dataclass(frozen=True)
class Predictive:
    """Class probabilities of a batch and what their uncertainty is made of, in nats.

        entropy = aleatoric + epistemic,   H(E p̂) = E H(p̂) + I(y; W)

    The equality is exact. Aleatoric uncertainty stays however much data arrives; epistemic
    uncertainty, the mutual information of label and weights, is what more data could remove.

    Attributes:
        probs: mean probabilities, ``(B, K)``.
        entropy: entropy of ``probs``, ``(B,)``.
        aleatoric: expected entropy, ``(B,)``.
        epistemic: mutual information, never negative, ``(B,)``.
    """

    probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @classmethod
    def from_moments(
        cls,
        mu: Tensor,
        var: Tensor,
        *,
        method: Method = "auto",
        samples: int | None = None,
        seed: int = 0,
        mask: Tensor | None = None,
    ) -> Predictive:
        """Predict from Gaussian logits z ~ N(μ, Σ), independent ones given by their variances.

        ``"sample"`` averages softmax over fixed low-discrepancy draws; ``"exact"`` integrates
        numerically, to six digits, independent logits or two classes (over their difference);
        ``"probit"`` and ``"laplace_bridge"`` are `closed_form` approximations; ``"auto"`` is exact
        for two classes and samples more. docs/results/predictive.md has their errors and costs.

        All are deterministic: a row's result does not depend on its batch beyond rounding, and
        renaming the classes does nothing but rename them, in a covariance too. A shift common to
        all logits, however it correlates with them, changes the law of no softmax; ``"probit"``
        and ``"laplace_bridge"`` do not see it, ``"sample"`` sees other draws of the same law.
        Memory beyond inputs and outputs is bounded, whatever B.

        Args:
            mu: logit means, ``(B, K)``.
            var: logit variances ``(B, K)``, or covariances ``(B, K, K)``, which may be singular.
            method: how to integrate.
            samples: draws for ``"sample"``, which ``"auto"`` then takes; else chosen from K.
            seed: seed of these draws.
            mask: which classes exist for a row, bool ``(B, K)``; the others get probability 0.

        Returns:
            The prediction, in float32 or, for float64 moments, in float64.

        Raises:
            ConfigError: an unknown method, too few samples, or ``"exact"`` for the covariance of
                more than two logits.
            DataError: the mask leaves a row without classes, or the shapes do not fit.
            NumericsError: a moment is not finite, a variance is negative, or a covariance is not
                symmetric and positive semi-definite.
        """
        _require_some_class(mask)
        if var.shape not in (mu.shape, (*mu.shape, mu.shape[-1])):
            raise DataError(
                f"Logit means have shape {tuple(mu.shape)} and their variances {tuple(var.shape)}; "
                "expected (B, K) with (B, K), or with covariances (B, K, K)."
            )
        if method not in get_args(Method):
            raise ConfigError(
                f"Unknown predictive method {method!r}.{nearest(method, get_args(Method))}"
            )
        # Mixed precision would turn the matrix products of the quadrature into bfloat16.
        with torch.autocast(mu.device.type, enabled=False):
            return cls.concatenate(
                [
                    cls._split(*_integrate(m, v, exists, method, samples, seed))
                    for m, v, exists in _blocks(mask, mu, var)
                ]
            )

    @classmethod
    def from_samples(cls, logits: Tensor, mask: Tensor | None = None) -> Predictive:
        """Predict from draws of the logits: probabilities are averaged, never logits.

        Args:
            logits: one slice per draw of the weights, ``(S, B, K)``.
            mask: which classes exist for a row, bool ``(B, K)``.
        """
        _require_some_class(mask)
        parts = []
        for draws, exists in _blocks(mask, logits.transpose(0, 1)):
            log_p = present(_full_precision(draws.transpose(0, 1), "logit"), exists).log_softmax(-1)
            p = log_p.exp()  # (S, b, K)
            parts.append(cls._split(p.mean(0), -(p * log_p).sum(-1).mean(0)))
        return cls.concatenate(parts)

    @classmethod
    def from_point(cls, logits: Tensor, mask: Tensor | None = None) -> Predictive:
        """Predict from one set of logits: all uncertainty is aleatoric, epistemic is exactly 0.

        Args:
            logits: logits, ``(B, K)``.
            mask: which classes exist for a row, bool ``(B, K)``.
        """
        _require_some_class(mask)
        log_p = present(_full_precision(logits, "logit"), mask).log_softmax(-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        return cls(p, entropy, entropy, torch.zeros_like(entropy))

    def cpu(self) -> Predictive:
        """Return the same on the CPU."""
        return Predictive(
            self.probs.cpu(), self.entropy.cpu(), self.aleatoric.cpu(), self.epistemic.cpu()
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Predictive]) -> Predictive:
        """Join predictions of consecutive batches."""
        fields = [(p.probs, p.entropy, p.aleatoric, p.epistemic) for p in parts]
        return cls(*(torch.cat(tensors) for tensors in zip(*fields, strict=True)))

    @classmethod
    def _split(cls, probs: Tensor, aleatoric: Tensor) -> Predictive:
        probs = probs / probs.sum(-1, keepdim=True)
        entropy = torch.special.entr(probs).sum(-1)
        # Rounding must not make information negative, nor break the sum.
        aleatoric = torch.minimum(aleatoric.clamp_min(0), entropy)
        epistemic = entropy - aleatoric
        return cls(probs, aleatoric + epistemic, aleatoric, epistemic)


def _integrate(
    mu: Tensor, var: Tensor, mask: Tensor | None, method: Method, samples: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Return mean probabilities ``(B, K)`` and expected entropies ``(B,)``."""
    mu, var = _full_precision(mu, "logit mean"), _full_precision(var, "logit variance")
    _require_covariance(var)
    if method == "auto":
        method = "exact" if mu.shape[1] == 2 and samples is None else "sample"
    if method == "sample":
        count = default_samples(mu.shape[1]) if samples is None else samples
        return sampled_softmax(mu, var, count, seed, mask)
    if method == "exact":
        return _exact(mu, var, mask)
    return (probit if method == "probit" else laplace_bridge)(mu, var, mask)


def _exact(mu: Tensor, var: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mu.shape[1] == 2:
        mu = present(mu, mask)
        # Either class from its own side: 1 − p would lose a small probability.
        ahead = (mu - mu.flip(-1)).flatten()  # (2B,)
        spread = 4 * contrast_variances(var, torch.full_like(mu, 0.5)).flatten()
        p, aleatoric = expected_sigmoid(ahead, spread)
        return p.view_as(mu), aleatoric.view_as(mu)[:, 0]
    if var.ndim == 3:
        raise ConfigError(
            "method='exact' integrates independent logits, or those of two classes; got a "
            f"covariance of {mu.shape[1]}. Use method='sample', with more samples if need be."
        )
    return expected_softmax(mu, var, mask)


def _blocks(mask: Tensor | None, *tensors: Tensor) -> Iterator[Any]:
    """Yield blocks of rows of tensors ``(B, ...)``, and of the mask where there is one."""
    rows = max(1, _NUMBERS // max(1, *(t.shape[1:].numel() for t in tensors)))
    splits = [t.split(rows) for t in tensors]
    masks = [None] * len(splits[0]) if mask is None else mask.split(rows)
    return zip(*splits, masks, strict=True)


def _require_some_class(mask: Tensor | None) -> None:
    if mask is not None and not mask.any(-1).all():
        row = int((~mask.any(-1)).nonzero()[0])
        raise DataError(f"The mask leaves no class for row {row}; at least one must exist.")


def _require_covariance(var: Tensor) -> None:
    own = variances(var)
    if (own < 0).any():
        raise NumericsError(f"A logit variance is negative ({float(own.detach().min()):.4g}).")
    if var.ndim == 3:
        gap = (var - var.mT).abs().amax((1, 2))
        if (gap > 1e-3 * own.amax(-1)).any():
            raise NumericsError(
                f"A logit covariance is not symmetric: entries differ by {float(gap.max()):.4g}."
            )


def _full_precision(value: Tensor, name: str) -> Tensor:
    value = value if value.dtype == torch.float64 else value.float()
    if not torch.isfinite(value).all():
        raise NumericsError(
            f"A {name} is NaN or infinite. Check the features and the learning rate; mark absent "
            "classes with mask= and not with infinite logits."
        )
    return value
