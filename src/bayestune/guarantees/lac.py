"""LAC, least ambiguous set-valued classification: the classes that are probable enough."""

from __future__ import annotations

from torch import Tensor


def scores(probs: Tensor, u: Tensor) -> Tensor:
    """Return how badly each class conforms: what its probability lacks to one.

        s_k = 1 − p_k

    Of all sets with the same coverage these are the smallest on average where p is the truth. Hard
    rows are covered less often than easy ones.

    Args:
        probs: class probabilities ``(N, K)``.
        u: not needed.

    Returns:
        Scores in [0, 1], float64 ``(N, K)``.

    Source: Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded
    error levels".
    """
    return 1 - probs.double()
