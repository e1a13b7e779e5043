"""A data set ready for a model, and its pooled features: all that a finaliser needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.data import Encoded
from bayestune.posterior.observed import LogitDraws, LogitMoments


@dataclass(frozen=True)
class Features:
    """Cached features of N examples.

    Attributes:
        phi: pooled features ``(N, D)`` in fp32, on the CPU.
        labels: class indices ``(N,)``, or numbers ``(N, 1)``.
        mask: which classes exist for a row, bool ``(N, K)``; None where all do.
        weights: sample weights of mean one ``(N,)``; None for ones.
        unit: what one unit of the numbers is in the user's own; 1 for classes.
        logits: what random adapter weights say of the rows; None where the adapter is a point.
    """

    phi: Tensor
    labels: Tensor
    mask: Tensor | None = None
    weights: Tensor | None = None
    unit: float = 1.0
    logits: LogitDraws | LogitMoments | None = None

    def __len__(self) -> int:
        return self.phi.shape[0]

    def first(self, count: int) -> Features:
        """Return the first examples."""
        mask = None if self.mask is None else self.mask[:count]
        weights = None if self.weights is None else self.weights[:count]
        return Features(self.phi[:count], self.labels[:count], mask, weights, self.unit)


@dataclass(frozen=True)
class Rows:
    """N encoded examples.

    Attributes:
        encoded: token ids.
        labels: class indices ``(N,)``, or numbers in the model's scaling ``(N, 1)``.
        mask: which classes exist ``(N, K)``; None where all do.
        weights: sample weights of mean one ``(N,)``; None for ones.
        unit: what one unit of the numbers is in the user's own; 1 for classes.
        ids: of the examples, as the user knows them.
    """

    encoded: Encoded
    labels: Tensor
    mask: Tensor | None
    weights: Tensor | None
    unit: float = 1.0
    ids: tuple[str | int, ...] = ()

    def __len__(self) -> int:
        return len(self.encoded.ids)

    def batch(self, phi: Tensor, rows: Sequence[int]) -> Features:
        """Return the features of some rows with their labels, on the features' device."""
        index = torch.tensor(rows)

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index].to(phi.device)

        labels = self.labels[index].to(phi.device)
        return Features(phi, labels, pick(self.mask), pick(self.weights), self.unit)

    def features(self, phi: Tensor) -> Features:
        """Return the features of all rows with their labels, on the features' device."""
        return self.batch(phi, range(len(self)))
