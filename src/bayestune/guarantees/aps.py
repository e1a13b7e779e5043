"""APS, adaptive prediction sets: the most probable classes until they are enough together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def scores(probs: Tensor, u: Tensor) -> Tensor:
    """Return how badly each class conforms: the probability of all that come before it.

        s_k = Σ_j p_j 1{p_j ≥ p_k} − u p_k

    u in [0, 1) cuts the last class. Without it (u = 0) the second of two classes always has
    score 1, and confident models get sets of twice the size. Hard rows get large sets and are
    covered about as often as easy ones.

    Args:
        probs: class probabilities ``(N, K)``.
        u: a number in [0, 1) for each row ``(N,)``; see `uniforms`.

    Returns:
        Scores in [0, 1], float64 ``(N, K)``.

    Source: Romano, Sesia and Candès 2020, "Classification with valid and adaptive coverage"
    (1 − u is their U).
    """
    p = probs.double()
    return 1 - less_probable(p)[1] - u.double()[:, None] * p


def less_probable(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many classes are less probable than each class, and their probability.

    Args:
        probs: class probabilities, float64 ``(N, K)``.

    Returns:
        Counts, int64, and sums, float64, both ``(N, K)``.
    """
    ascending = probs.sort(dim=1).values
    count = torch.searchsorted(ascending, probs.contiguous())
    return count, pad(ascending.cumsum(1), (1, 0)).gather(1, count)
