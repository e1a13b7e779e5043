"""The line search against functions whose minimum is known."""

from __future__ import annotations

import math

import pytest

from bayestune.finalize.line import minimise

BOUNDS = (-4.0, 4.0)


class Counted:
    """A function that remembers its values, as a caller's should."""

    def __init__(self, f) -> None:
        self.f, self.values = f, {}

    def __call__(self, x: float) -> float:
        if x not in self.values:
            self.values[x] = self.f(x)
        return self.values[x]


@pytest.mark.parametrize("where", [-3.7, -1.1, -0.02, 0.0, 0.6, 2.9])
@pytest.mark.parametrize("start", [-4.0, 0.0, 1.3])
@pytest.mark.parametrize(
    "shape",
    [
        lambda x: x**2,
        lambda x: math.log(math.cosh(5 * x)),
        lambda x: math.exp(x) - x,
        lambda x: abs(x) + x**2,
    ],
)
def test_it_finds_the_minimum_with_few_evaluations(where, start, shape) -> None:
    f = Counted(lambda x: shape(x - where))
    assert minimise(f, start, 0.5, 0.01, BOUNDS) == pytest.approx(where, abs=0.01)
    assert len(f.values) <= 20


@pytest.mark.parametrize(("slope", "end"), [(1.0, -4.0), (-1.0, 4.0)])
@pytest.mark.parametrize("start", [-9.0, -4.0, 0.3, 4.0, 9.0])
def test_a_minimum_at_a_bound_is_found_and_the_bounds_are_kept(slope, end, start) -> None:
    f = Counted(lambda x: slope * x)
    assert minimise(f, start, 0.5, 0.01, BOUNDS) == pytest.approx(end, abs=0.02)
    assert all(-4 <= x <= 4 for x in f.values)


def test_a_flat_function_leaves_it_where_it_was() -> None:
    assert minimise(Counted(lambda x: 1.0), 0.7, 0.5, 0.01, BOUNDS) == pytest.approx(0.7, abs=0.5)


def test_the_answer_is_the_best_point_seen() -> None:
    f = Counted(lambda x: math.sin(3 * x) + 0.1 * x**2)
    x = minimise(f, 0.0, 0.5, 0.01, BOUNDS)
    assert f.values[x] == min(f.values.values())
