"""Features with labels from a known model, and a head near it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayestune.finalize import Features
from bayestune.head import GaussianHead

CLASSES, WIDTH = 4, 6


def truth() -> Tensor:
    """Weights (K, D) that the labels come from."""
    return 0.8 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(11))


@pytest.fixture
def rows() -> Callable[..., Features]:
    """Draw N rows whose labels follow softmax(Wφ) of `truth`."""

    def draw(count: int, seed: int = 0, *, masked: bool = False, weighed: bool = False) -> Features:
        generator = torch.Generator().manual_seed(seed)
        phi = torch.randn(count, WIDTH, generator=generator) + 0.5
        mask = None
        logits = phi @ truth().T
        if masked:
            present = torch.randint(2, CLASSES + 1, (count, 1), generator=generator)
            mask = torch.arange(CLASSES) < present
            logits = logits.masked_fill(~mask, -torch.inf)
        labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
        weights = torch.rand(count, generator=generator) * 2 if weighed else None
        return Features(phi, labels, mask, weights)

    return draw


@pytest.fixture
def gaussian() -> Callable[..., GaussianHead]:
    """A Gaussian head whose mean is a multiple of the truth, with uneven deviations."""

    def make(confidence: float = 1.0, deviation: float = 0.3) -> GaussianHead:
        head = GaussianHead(in_features=WIDTH, num_classes=CLASSES)
        head.set_feature_energy(7.5)
        generator = torch.Generator().manual_seed(12)
        with torch.no_grad():
            head.weight.copy_(confidence * truth())
            noise = torch.randn(CLASSES, WIDTH, generator=generator) * 0.2
            head.log_scale.copy_(noise + torch.tensor(deviation).log())
        return head

    return make
