"""The exact bound, the rule, and its guarantee over many repeats."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import pytest
import torch
from scipy.stats import beta, binom
from torch import Tensor

from bayestune.errors import ConfigError, DataError
from bayestune.guarantees import AbstainRule, Guarantees, SetRule, selective, upper_bound

INF = math.inf


# the bound --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.05, 0.0025])
def test_the_bound_is_that_of_the_beta_distribution(level) -> None:
    for errors, rows in [(0, 1), (0, 300), (1, 2), (3, 40), (39, 40), (50, 1000), (400, 20_000)]:
        expected = beta.ppf(1 - level, errors + 1, rows - errors)
        assert upper_bound(errors, rows, level) == pytest.approx(expected, abs=1e-9)
    assert upper_bound(0, 300, level) == pytest.approx(1 - level ** (1 / 300), abs=1e-10)
    assert upper_bound(0, 0, level) == upper_bound(7, 7, level) == 1


def test_the_bound_is_too_small_as_seldom_as_it_says() -> None:
    n, level = 25, 0.1
    bounds = [upper_bound(e, n, level) for e in range(n + 1)]
    assert bounds == sorted(bounds)
    worst = max(
        sum(math.comb(n, e) * p**e * (1 - p) ** (n - e) for e in range(n + 1) if bounds[e] < p)
        for p in (i / 400 for i in range(1, 400))
    )
    assert 0.09 < worst <= level


# the rule ---------------------------------------------------------------------------------------


def by_hand(s: list[float], right: list[bool], u: list[float], r: float, delta: float) -> int:
    """How many calibration rows are answered, by p-values of the binomial distribution."""
    n = len(s)
    wrong = [not ok for _, _, ok in sorted(zip(s, u, right, strict=True))]
    found = 0
    for share in range(1, 21):
        j = -(-n * share // 20)
        if (1 - r) ** j <= delta and 10 * j >= n:
            if binom.cdf(sum(wrong[:j]), j, r) > delta:
                break
            found = j
    return found


@pytest.mark.parametrize("n", [1, 7, 20, 60, 333])
@pytest.mark.parametrize("levels", [None, 4, 1])
def test_the_rule_is_the_one_by_hand(n, levels) -> None:
    g = torch.Generator().manual_seed(n)
    s, u = torch.rand(2, n, generator=g, dtype=torch.float64)
    right = torch.rand(n, generator=g) > 0.3 * s
    s = s if levels is None else (s * levels).floor()  # equal uncertainties
    curve = selective.calibrate(s, right, u, 0.5, 0.9)
    for risk in (0.05, 0.1, 0.2, 0.4):
        rule = selective.calibrate(s, right, u, risk, 0.9)
        expected = by_hand(s.tolist(), right.tolist(), u.tolist(), risk, 0.1)
        assert (0 if rule.chosen is None else rule.accepted[rule.chosen]) == expected
        answered = ~selective.apply(rule, s, u)
        assert answered.sum() == expected
        if 0 < expected < n:  # the least uncertain ones
            assert s[answered].max() <= s[~answered].min()
            assert (~right)[answered].sum() == rule.errors[rule.chosen or 0]
            assert rule.bounds[rule.chosen or 0] <= risk
        # The stored curve is enough for any other risk.
        assert dataclasses.replace(curve, max_risk=risk) == rule


def test_what_is_attainable_is_the_least_risk_that_answers() -> None:
    g = torch.Generator().manual_seed(3)
    s, u = torch.rand(2, 200, generator=g, dtype=torch.float64)
    rule = selective.calibrate(s, torch.rand(200, generator=g) > 0.4 * s, u, 0.01)
    least = rule.attainable
    assert rule.chosen is None and least is not None
    answering = next(r / 2000 for r in range(1, 2000) if rule.at(r / 2000) is not None)
    assert answering - 1 / 2000 <= least <= answering
    assert selective.calibrate([0.1], [0], [0.5], 0.5).attainable is None


def test_everything_or_nothing() -> None:
    s, u = torch.arange(400.0), torch.linspace(0, 0.99, 400)
    sure = selective.calibrate(s, torch.ones(400), u, 0.02)
    assert sure.threshold == INF and sure.accepted[-1] == 400
    assert not selective.apply(sure, torch.tensor([1e9, -1e9]), u[:2]).any()
    never = selective.calibrate(s, torch.arange(400) % 2, u, 0.02)
    assert never.chosen is None and never.threshold == -INF
    assert selective.apply(never, torch.tensor([-INF, -1e9, 0]), u[:3]).all()
    assert selective.apply(sure, torch.tensor([math.nan]), u[:1]).all()  # no number, no answer


class Careless(AbstainRule):
    """A rule that takes the last position of its curve."""

    @property
    def chosen(self) -> int | None:
        return len(self.accepted) - 1 if self.n else None


def chosen_at(rule: AbstainRule, i: int | None) -> AbstainRule:
    curve = ("thresholds", "ties", "accepted", "errors")
    parts = {name: getattr(rule, name)[: 1 if i is None else i + 1] for name in curve}
    rest = {"by": rule.by, "max_risk": rule.max_risk, "confidence": rule.confidence}
    return Careless(**parts, **rest, n=0 if i is None else rule.n)


def population(name: str, s: Tensor) -> Tensor:
    """The probability of an error by uncertainty."""
    if name == "graded":
        return s**2
    if name == "sure and wrong":  # the risk falls before it rises
        return torch.where(s < 0.05, 0.2, torch.where(s < 0.6, 0.005, 0.6))
    return 0.06 + 0.5 * (12 * math.pi * s).sin().clamp(min=0) * (s > 0.2)  # in and out


@pytest.mark.parametrize("name", ["graded", "sure and wrong", "waves"])
@pytest.mark.parametrize("levels", [None, 5])
def test_the_risk_is_kept_as_often_as_promised(monkeypatch, name, levels) -> None:
    """Over 1,000 draws of the calibration rows; the risk of each threshold is known exactly."""
    monkeypatch.setattr(selective, "upper_bound", lru_cache(None)(upper_bound))
    repeats, n, risk, confidence = 1000, 150, 0.1, 0.8
    g = torch.Generator().manual_seed(7)
    grid, grid_u = (torch.arange(20_000) + 0.5) / 20_000, torch.rand(20_000, generator=g)
    rates = population(name, grid).double()

    def coarse(s: Tensor) -> Tensor:
        return s if levels is None else (s * levels).floor() / levels

    def is_kept(rule: AbstainRule) -> bool:
        answered = ~selective.apply(rule, coarse(grid), grid_u)
        return not answered.any() or rates[answered].mean().item() <= risk

    kept, naive, share = 0, 0, 0
    for _ in range(repeats):
        s, u = torch.rand(2, n, generator=g)
        right = torch.rand(n, generator=g) >= population(name, s)
        rule = selective.calibrate(coarse(s), right, u, risk, confidence)
        kept += is_kept(rule)
        share += rule.chosen is not None
        # The most rows whose error on these rows is small enough: what is done without care.
        small = [i for i, a in enumerate(rule.accepted) if rule.errors[i] <= risk * a]
        careless = chosen_at(rule, small[-1] if small else None)
        naive += is_kept(careless)
    allowed = 1 - confidence
    assert 1 - kept / repeats <= allowed + 4 * math.sqrt(allowed * confidence / repeats)
    assert share / repeats > 0.1  # and not by saying nothing
    assert 1 - naive / repeats > allowed  # what the bound is for


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"max_risk": 0.0}, ConfigError, "max_risk = 0.0"),
        ({"max_risk": 1.0}, ConfigError, "max_risk = 1.0"),
        ({"confidence": 1.0}, ConfigError, "confidence = 1.0"),
        ({"uncertainty": [0.1, math.nan]}, DataError, "row 1 is nan"),
        ({"uncertainty": [0.1]}, DataError, "the same number"),
        ({"u": [0.1]}, DataError, "the same number"),
        ({"uncertainty": [], "correct": []}, DataError, "no rows"),
        ({"correct": [1, 2]}, DataError, "expected 0 or 1"),
    ],
)
def test_what_cannot_calibrate(change, error, said) -> None:
    given = {
        "uncertainty": [0.1, 0.2],
        "correct": [1, 0],
        "u": [0.3, 0.4],
        "max_risk": 0.1,
        "confidence": 0.9,
    }
    with pytest.raises(error, match=said):
        selective.calibrate(**given | change)


# as it is stored --------------------------------------------------------------------------------


def test_rules_come_back_from_json() -> None:
    import json

    sets_rule = SetRule("raps", 0.9, INF, 12, 1.5, {"penalty": 0.5, "free": 1})
    abstain = selective.calibrate(torch.rand(30), torch.ones(30), torch.rand(30), 0.2)
    for rules in ((sets_rule, abstain), (None, abstain), (sets_rule, None)):
        found = Guarantees(*rules, "hash", {"samples": 3, "dtype": "float32"})
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Guarantees.from_json(json.loads(text)) == found
        assert len(text) < 2000


def test_a_curve_that_is_none_is_refused() -> None:
    for lengths in ((0, 0, 0, 0), (2, 1, 1, 1), (2, 2, 2, 1)):
        with pytest.raises(ConfigError, match="as many"):
            AbstainRule("entropy", 0.1, 0.9, 5, *((1,) * n for n in lengths))
