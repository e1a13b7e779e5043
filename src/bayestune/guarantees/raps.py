"""RAPS, regularised adaptive prediction sets: APS that lets in late classes reluctantly."""

from __future__ import annotations

from torch import Tensor

from bayestune.guarantees import aps


def scores(probs: Tensor, u: Tensor, penalty: float = 0.01, free: int = 2) -> Tensor:
    """Return how badly each class conforms: as for APS, and more for each class before it.

        s_k = Σ_j p_j 1{p_j ≥ p_k} − u p_k + λ (o_k − k_reg)₊,   o_k = Σ_j 1{p_j ≥ p_k}

    The penalty keeps the long tail of unlikely classes out of large sets; with few classes it
    hardly matters, and a large one gives all rows sets of one size. λ and k_reg may not be chosen
    by the rows that calibrate: these defaults are the same for every task.

    Args:
        probs: class probabilities ``(N, K)``.
        u: a number in [0, 1) for each row ``(N,)``; see `uniforms`.
        penalty: λ ≥ 0, per class.
        free: k_reg, how many classes come without penalty.

    Returns:
        Scores ≥ 0, float64 ``(N, K)``.

    Source: Angelopoulos, Bates, Malik and Jordan 2021, "Uncertainty sets for image classifiers
    using conformal prediction".
    """
    count, _ = aps.less_probable(probs.double())
    rank = (probs.shape[1] - count).double()
    return aps.scores(probs, u) + penalty * (rank - free).clamp(min=0)
