"""Pooled features of a data set with their labels: all that a finaliser needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Cached features of N examples.

    Attributes:
        phi: pooled features ``(N, D)`` in fp32, on the CPU.
        labels: class indices ``(N,)``, or numbers ``(N, 1)``.
        mask: which classes exist for a row, bool ``(N, K)``; None where all do.
        weights: sample weights of mean one ``(N,)``; None for ones.
        unit: what one unit of the numbers is in the user's own; 1 for classes.
    """

    phi: Tensor
    labels: Tensor
    mask: Tensor | None = None
    weights: Tensor | None = None
    unit: float = 1.0

    def __len__(self) -> int:
        return self.phi.shape[0]

    def first(self, count: int) -> Features:
        """Return the first examples."""
        mask = None if self.mask is None else self.mask[:count]
        weights = None if self.weights is None else self.weights[:count]
        return Features(self.phi[:count], self.labels[:count], mask, weights, self.unit)
