"""The finite-sample quantile of split conformal prediction."""

from __future__ import annotations

import math

import torch

from bayestune.errors import ConfigError
from bayestune.metrics.inputs import ArrayLike, as_tensor, count_for_share


def conformal_quantile(scores: ArrayLike, coverage: float) -> float:
    """Return the score below which a further, exchangeable one stays with a probability.

        q = the k-th smallest of n scores, k = ⌈(n + 1)(1 − α)⌉;   ∞ if k > n

    P(s_{n+1} ≤ q) ≥ 1 − α over the n rows and the further one; where no two scores are equal it is
    at most 1 − α + 1/(n + 1). Over the rows to come, given these n, it is then distributed as
    Beta(k, n + 1 − k).

    Args:
        scores: of n rows, ∞ allowed, ``(n,)``.
        coverage: 1 − α in (0, 1].

    Raises:
        ConfigError: if the coverage is not in (0, 1].

    Source: Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world"; Vovk 2012,
    "Conditional validity of inductive conformal predictors", for the distribution.
    """
    s = as_tensor(scores, "scores", torch.float64)
    k = count_for_share(coverage, s.numel() + 1, "coverage")
    return math.inf if k > s.numel() else s.kthvalue(k).values.item()


def check_probability(value: float, name: str) -> float:
    """Return a probability strictly between 0 and 1, or raise ConfigError."""
    if not 0 < value < 1:
        raise ConfigError(f"{name} = {value!r} given, expected a number above 0 and below 1.")
    return value


def rows_needed(coverage: float) -> int:
    """Return the fewest rows n whose quantile is finite.

        ⌈(n + 1)(1 − α)⌉ ≤ n

    Args:
        coverage: 1 − α in (0, 1).
    """
    n = max(1, math.floor(coverage / (1 - coverage)) - 1)
    while count_for_share(coverage, n + 1, "coverage") > n:
        n += 1
    return n
