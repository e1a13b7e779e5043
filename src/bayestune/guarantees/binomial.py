"""How large a rate may be that has led to so few errors."""

from __future__ import annotations

import math

import torch


def upper_bound(errors: int, rows: int, level: float) -> float:
    """Return the exact (Clopper–Pearson) upper confidence bound of an error rate.

        sup { p : P(Bin(n, p) ≤ e) > δ },   P(bound < rate) ≤ δ

    Found by bisection; the end that is returned is the one above the root.

    Args:
        errors: e of n rows, 0 ≤ e ≤ n.
        rows: n; without any the bound is 1.
        level: δ in (0, 1).

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the
    case of the binomial".
    """
    if errors >= rows:
        return 1.0
    i = torch.arange(errors + 1, dtype=torch.float64)
    n = torch.tensor(float(rows), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)  # (e + 1,)

    def log_cdf(p: float) -> float:
        return (ways + i * math.log(p) + (n - i) * math.log1p(-p)).logsumexp(0).item()

    low, high = errors / rows, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if log_cdf(middle) > math.log(level) else (low, middle)
    return high
