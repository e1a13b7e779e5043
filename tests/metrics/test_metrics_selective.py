"""Risk-coverage curves against averages over every order of tied rows."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.errors import ConfigError
from bayestune.metrics import (
    aurc,
    coverage_at_risk,
    e_aurc,
    risk_at_coverage,
    risk_coverage_curve,
)

checked = settings(max_examples=40, deadline=None, derandomize=True, database=None)

few_rows = st.lists(st.tuples(st.sampled_from([0.5, 0.7, 0.9]), st.booleans()), min_size=1)


def curve_over_all_orders(rows: list[tuple[float, bool]]) -> list[float]:
    """The mean curve over every permutation that sorts the rows by falling confidence."""
    sums, seen = [0.0] * len(rows), 0
    for order in permutations(rows):
        if any(a[0] < b[0] for a, b in pairwise(order)):
            continue
        seen, errors = seen + 1, 0
        for k, (_, right) in enumerate(order):
            errors += not right
            sums[k] += errors / (k + 1)
    return [s / seen for s in sums]


@checked
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=6
    )
)
def test_the_curve_is_the_mean_over_all_orders_of_ties(rows) -> None:
    expected = curve_over_all_orders(rows)
    confidence, correct = [c for c, _ in rows], [a for _, a in rows]
    found = risk_coverage_curve(confidence, correct)
    assert found.risk.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.coverage.tolist() == [(k + 1) / len(rows) for k in range(len(rows))]
    assert found.threshold.tolist() == sorted(confidence, reverse=True)
    assert aurc(confidence, correct) == pytest.approx(sum(expected) / len(rows), abs=1e-12)


def test_without_ties_the_curve_is_the_running_error_rate() -> None:
    g = torch.Generator().manual_seed(0)
    confidence = torch.randn(500, generator=g)  # any score will do, also a negative one
    correct = torch.rand(500, generator=g) < 0.7
    errors = (~correct)[confidence.argsort(descending=True)].double()
    running = errors.cumsum(0) / torch.arange(1, 501)
    found = risk_coverage_curve(confidence, correct)
    torch.testing.assert_close(found.risk, running, rtol=1e-12, atol=0)
    assert found.attainable.all()


@checked
@given(rows=few_rows, seed=st.integers(0, 99))
def test_values_do_not_depend_on_the_order_of_rows(rows, seed: int) -> None:
    confidence = torch.tensor([c for c, _ in rows])
    correct = torch.tensor([a for _, a in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    assert aurc(confidence, correct) == aurc(confidence[order], correct[order])
    assert e_aurc(confidence, correct) >= -1e-12
    assert e_aurc(confidence, correct) <= aurc(confidence, correct)


def test_a_perfect_order_has_no_excess_and_a_reversed_one_the_most() -> None:
    correct = [1, 1, 1, 1, 0, 0]
    best, worst = [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]
    assert aurc(best, correct) == pytest.approx((1 / 5 + 2 / 6) / 6)
    assert e_aurc(best, correct) == 0.0
    assert aurc(worst, correct) == pytest.approx((1 + 1 + 2 / 3 + 2 / 4 + 2 / 5 + 2 / 6) / 6)
    assert e_aurc(worst, correct) == pytest.approx(aurc(worst, correct) - aurc(best, correct))


def test_equal_confidences_have_the_error_rate_everywhere() -> None:
    confidence, correct = [0.8] * 10, [1] * 7 + [0] * 3
    assert aurc(confidence, correct) == pytest.approx(0.3)
    assert risk_at_coverage(confidence, correct, 0.1) == pytest.approx(0.3)
    assert coverage_at_risk(confidence, correct, 0.29) == 0.0
    assert coverage_at_risk(confidence, correct, 0.3) == 1.0


@pytest.mark.parametrize("right", [0, 1])
def test_one_row(right: int) -> None:
    assert aurc([0.9], [right]) == 1 - right
    assert e_aurc([0.9], [right]) == 0.0
    assert risk_at_coverage([0.9], [right], 0.5) == 1 - right
    assert coverage_at_risk([0.9], [right], 0.0) == right


def test_risk_at_coverage_answers_at_least_the_share() -> None:
    confidence = torch.arange(100, 0, -1)
    correct = torch.ones(100)
    correct[7] = 0  # the eighth most confident row is wrong
    assert risk_at_coverage(confidence, correct, 0.07) == 0.0
    assert risk_at_coverage(confidence, correct, 0.0701) == 1 / 8
    assert risk_at_coverage(confidence, correct, 1.0) == 0.01


def test_coverage_at_risk_takes_the_largest_coverage_not_the_first_crossing() -> None:
    confidence, correct = [5, 4, 3, 2, 1], [0, 1, 1, 1, 0]
    assert coverage_at_risk(confidence, correct, 0.25) == 0.8
    assert coverage_at_risk(confidence, correct, 0.2) == 0.0
    assert coverage_at_risk(confidence, correct, 1.0) == 1.0


def test_coverage_at_risk_answers_tied_rows_whole_or_not_at_all() -> None:
    confidence, correct = [0.9] * 5 + [0.5] * 5, [1] * 5 + [1, 1, 1, 0, 0]
    assert coverage_at_risk(confidence, correct, 0.199) == 0.5
    assert coverage_at_risk(confidence, correct, 0.2) == 1.0
    assert risk_at_coverage(confidence, correct, 0.6) == pytest.approx(0.4 / 6)
    attainable = risk_coverage_curve(confidence, correct).attainable
    assert attainable.nonzero().flatten().tolist() == [4, 9]


def test_shares_outside_their_range_are_refused() -> None:
    for coverage in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="coverage"):
            risk_at_coverage([0.5], [1], coverage)
    for risk in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="risk"):
            coverage_at_risk([0.5], [1], risk)
