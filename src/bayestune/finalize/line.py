"""Minimising a smooth function of one number with few evaluations."""

from __future__ import annotations

from collections.abc import Callable

_GOLDEN = 0.381966


def minimise(
    f: Callable[[float], float],
    start: float,
    step: float,
    tolerance: float,
    bounds: tuple[float, float],
) -> float:
    """Return where a smooth function has its minimum near a starting point.

    Doubling steps downhill until the function rises again bracket the minimum; then the vertex of
    the parabola through the three best points, or a golden section where that vertex is no better
    than one, shrinks the bracket.

    Args:
        f: the function; it should remember its values, which are asked for again.
        start: where to begin; moved into the bounds.
        step: size of the first step.
        tolerance: small enough for both sides of the bracket, or for two moves in a row.
        bounds: where to stay.

    Returns:
        The best of the points at which ``f`` was evaluated.

    Source: Brent 1973, "Algorithms for minimization without derivatives", chapter 5.
    """
    low, high = bounds
    b = min(max(start, low), high)
    a, c = max(b - step, low), min(b + step, high)
    while f(a) < f(b) and a > low:
        step *= 2
        a, b, c = max(a - step, low), a, b
    while f(c) < f(b) and c < high:
        step *= 2
        a, b, c = b, c, min(c + step, high)
    b = min((a, b, c), key=f)  # a bound may be lower than what is inside
    moved = last = c - a
    for _ in range(40):
        if max(b - a, c - b) <= tolerance or abs(moved) + abs(last) <= 2 * tolerance:
            break
        x = _vertex(f, a, b, c)
        # A vertex that moves no less than the move before last converges slowly, if at all.
        if x is None or abs(x - b) > abs(last) / 2:
            x = b + _GOLDEN * ((c - b) if c - b > b - a else (a - b))
        elif abs(x - b) < tolerance / 2:
            x = b + (tolerance / 2 if c - b > b - a else -tolerance / 2)
        last, moved = moved, x - b
        if f(x) <= f(b):
            a, b, c = (b, x, c) if x > b else (a, x, b)
        else:
            a, c = (a, x) if x > b else (x, c)
    return b


def _vertex(f: Callable[[float], float], a: float, b: float, c: float) -> float | None:
    """Return where the parabola through three points has its vertex, if inside and a minimum."""
    if not a < b < c:
        return None
    left, right = (b - a) * (f(b) - f(c)), (b - c) * (f(b) - f(a))
    denominator = 2 * (left - right)
    if denominator >= 0:
        return None
    x = b - ((b - a) * left - (b - c) * right) / denominator
    return x if a < x < c and x != b else None
