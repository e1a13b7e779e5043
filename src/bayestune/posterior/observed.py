"""What random adapter weights say about a text: draws of its logits, or their first two moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitDraws:
    """Logits of N texts under S draws of the weights, a draw being the same for all texts.

    Attributes:
        phi: features at the posterior's mean, ``(N, D)``.
        logits: ``(S, N, K)``.
    """

    phi: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return self.phi.shape[0]

    def to(self, device: torch.device) -> LogitDraws:
        """Return the same on a device."""
        return LogitDraws(self.phi.to(device), self.logits.to(device))


@dataclass(frozen=True)
class LogitMoments:
    """Gaussian logits of N texts, as a linearised model has them.

    Attributes:
        phi: features at the posterior's mean, ``(N, D)``.
        mean: ``(N, K)``.
        covariance: ``(N, K, K)``.
    """

    phi: Tensor
    mean: Tensor
    covariance: Tensor

    def __len__(self) -> int:
        return self.phi.shape[0]

    def to(self, device: torch.device) -> LogitMoments:
        """Return the same on a device."""
        return LogitMoments(*(t.to(device) for t in (self.phi, self.mean, self.covariance)))


#: What a method predicts from: features ``(N, D)`` where the adapter is a point.
Observed = Tensor | LogitDraws | LogitMoments
