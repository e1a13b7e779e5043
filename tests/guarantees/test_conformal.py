"""Quantile, scores and sets: by brute force, at the edges, and as a law over many splits."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError
from bayestune.guarantees import (
    KINDS,
    SetRule,
    conformal_quantile,
    raps,
    rows_needed,
    sets,
    uniforms,
)

INF = math.inf


def rows(n: int, K: int, seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities that are too sharp, labels of a flatter truth, and uniforms."""
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, K, generator=g, dtype=torch.float64)
    y = torch.multinomial((logits / 1.5).softmax(1), 1, generator=g)[:, 0]
    return logits.softmax(1), y, torch.rand(n, generator=g, dtype=torch.float64)


# the quantile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 8, 9, 10, 19, 99, 100])
@pytest.mark.parametrize("coverage", ["0.5", "0.8", "0.9", "0.95", "0.99"])
def test_the_quantile_is_the_kth_smallest(n, coverage) -> None:
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    k = math.ceil((n + 1) * Fraction(coverage))  # exactly, where floats round
    expected = sorted(scores.tolist())[k - 1] if k <= n else INF
    assert conformal_quantile(scores, float(coverage)) == expected
    assert (expected < INF) == (n >= rows_needed(float(coverage)))


def test_few_rows_ties_and_infinite_scores() -> None:
    assert conformal_quantile([0.1] * 8, 0.9) == INF
    assert conformal_quantile([0.1] * 9, 0.9) == 0.1
    assert conformal_quantile([0.2, 0.2, 0.2, 0.1, 0.3], 0.5) == 0.2
    assert conformal_quantile([0.1] * 8 + [INF], 0.9) == INF
    assert [rows_needed(c) for c in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)] == [1, 4, 9, 19, 99, 999]


# scores -----------------------------------------------------------------------------------------


def by_hand(kind: str, p: list[float], u: float, k: int) -> float:
    """The definitions, class by class."""
    if kind == "lac":
        return 1 - p[k]
    before = sum(q for q in p if q >= p[k]) - u * p[k]
    rank = sum(q >= p[k] for q in p)
    return before + (0.01 * max(0, rank - 2) if kind == "raps" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [2, 3, 150])
def test_scores_are_those_by_hand(kind, K) -> None:
    p, _, u = rows(20, K)
    p[0] = 1 / K  # all are equal
    p[1, :2] = p[1, :2].mean()
    found = KINDS[kind](p, u)
    for i in range(20):
        expected = [by_hand(kind, p[i].tolist(), u[i].item(), k) for k in range(K)]
        torch.testing.assert_close(found[i].tolist(), expected, rtol=0, atol=1e-12)


def test_penalty_and_free_classes_of_raps() -> None:
    p, u = torch.tensor([[0.5, 0.3, 0.2]]), torch.zeros(1)
    found = raps.scores(p, u, penalty=10, free=1)
    torch.testing.assert_close(found, torch.tensor([[0.5, 10.8, 21.0]]).double())
    assert [*sets._OPTIONS["raps"].values()] == [*(raps.scores.__defaults__ or ())]


def test_the_least_probable_class_has_the_same_score_in_every_row() -> None:
    """Else rounding would decide whether the second of two classes is in a set."""
    p = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)).clamp(0.5, 1)
    found = KINDS["aps"](torch.cat([p, 1 - p], 1), torch.zeros(500))
    assert (found[:, 1] == 1).all()


# sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [2, 5, 150])
def test_sets_are_those_by_hand(kind, K) -> None:
    p, y, u = rows(60, K)
    rule = sets.calibrate(p, y, u, 0.8, kind)
    true = sorted(by_hand(kind, p[i].tolist(), u[i].item(), int(y[i])) for i in range(60))
    q = true[math.ceil(61 * Fraction("0.8")) - 1]
    assert rule.threshold == pytest.approx(q, abs=1e-12)
    members = sets.apply(rule, p, u)
    # A hair wider, because the row that is the quantile is equal to it up to rounding.
    expected = [
        [
            by_hand(kind, p[i].tolist(), u[i].item(), k) <= q + 1e-12 or k == int(p[i].argmax())
            for k in range(K)
        ]
        for i in range(60)
    ]
    assert members.tolist() == expected
    assert rule.size == pytest.approx(sum(map(sum, expected)) / 60)
    assert (rule.n, rule.coverage, rule.kind) == (60, 0.8, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_sets_are_never_empty_and_never_hold_an_absent_choice(kind) -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    u = torch.zeros(3)
    options = sets._OPTIONS.get(kind, {})
    none = sets.apply(SetRule(kind, 0.9, -1.0, 9, 1.0, options), p, u)
    assert none.int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    every = sets.apply(SetRule(kind, 0.9, INF, 9, 1.0, options), p, u)
    assert every.int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert sets.apply(SetRule(kind, 0.9, 0.5, 9, 1.0, options), p[:0], u[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truth_of_probability_0_is_not_covered_and_counts(kind) -> None:
    p = torch.tensor([[0.9, 0.1, 0.0]]).repeat(10, 1)
    y = torch.tensor([0] * 8 + [2] * 2)
    assert sets.calibrate(p, y, torch.zeros(10), 0.7, kind).threshold < INF
    assert sets.calibrate(p, y, torch.zeros(10), 0.9, kind).threshold == INF


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_over_many_splits_follows_its_law(kind) -> None:
    """Mean k/(n + 1) and the deviation of Beta(k, n + 1 − k), for a model that is wrong."""
    n, m, splits = 39, 400, 500
    k = math.ceil((n + 1) * Fraction("0.85"))
    p, y, u = rows(splits * (n + m), 6, seed=3)
    true = KINDS[kind](p, u).gather(1, y[:, None])[:, 0].reshape(splits, n + m)
    covered = torch.stack(
        [
            (split[n:] <= conformal_quantile(split[:n], 0.85)).double().mean()
            for split in true.unbind()
        ]
    )
    a, b = k, n + 1 - k
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    variance += mean * (1 - mean) / m - variance / m  # m further rows instead of all
    error = math.sqrt(variance / splits)
    assert abs(covered.mean().item() - mean) < 4 * error
    assert covered.std().item() == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * splits))
    # One rank less would not pass.
    assert 1 / (n + 1) > 8 * error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [2, 20])
def test_sets_cover_what_was_asked(kind, K) -> None:
    n, m, splits = 30, 200, 200
    p, y, u = rows(splits * (n + m), K, seed=5)
    shares = []
    for i in range(splits):
        fit, new = slice(i * (n + m), i * (n + m) + n), slice(i * (n + m) + n, (i + 1) * (n + m))
        rule = sets.calibrate(p[fit], y[fit], u[fit], 0.8, kind)
        members = sets.apply(rule, p[new], u[new])
        shares.append(members.gather(1, y[new, None]).double().mean())
    found = torch.stack(shares)
    assert found.mean() > 0.8 - 4 * found.std() / math.sqrt(splits)


def test_lac_is_smallest_and_aps_covers_hard_rows() -> None:
    """What the three are for, where the probabilities are the truth."""
    g = torch.Generator().manual_seed(1)
    spread = torch.where(torch.rand(8000, 1, generator=g) < 0.5, 6.0, 1.0).double()
    logits = spread * torch.randn(8000, 10, generator=g, dtype=torch.float64)
    p = logits.softmax(1)
    y = torch.multinomial(p, 1, generator=g)[:, 0]
    u = torch.rand(8000, generator=g, dtype=torch.float64)
    hard, size, worst = spread[4000:, 0] == 1, {}, {}
    for kind in KINDS:
        rule = sets.calibrate(p[:4000], y[:4000], u[:4000], 0.9, kind)
        members = sets.apply(rule, p[4000:], u[4000:])
        size[kind] = members.sum(1).double().mean().item()
        inside = members.gather(1, y[4000:, None])[:, 0].double()
        worst[kind] = inside[hard].mean().item()
    assert size["lac"] < min(size["aps"], size["raps"])
    assert worst["aps"] > 0.88 > worst["lac"] + 0.02


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"coverage": 0.0}, ConfigError, "coverage = 0.0"),
        ({"coverage": 1.0}, ConfigError, "coverage = 1.0"),
        ({"coverage": math.nan}, ConfigError, "coverage = nan"),
        ({"kind": "lca"}, ConfigError, "Did you mean 'lac'"),
        ({"labels": [0, 1, 3]}, DataError, "row 2 is 3"),
        ({"labels": [0, 1]}, DataError, "the same number"),
        ({"u": [0.5]}, DataError, "the same number"),
        ({"probs": [[0.5, 0.6]] * 3}, DataError, "sums to 1.1"),
    ],
)
def test_what_cannot_calibrate(change, error, said) -> None:
    given = {
        "probs": [[0.2, 0.3, 0.5]] * 3,
        "labels": [0, 1, 2],
        "u": [0.1, 0.2, 0.3],
        "coverage": 0.5,
    }
    with pytest.raises(error, match=said):
        sets.calibrate(**given | change)


# numbers from texts -----------------------------------------------------------------------------


def test_uniforms_depend_on_the_text_alone_and_are_uniform() -> None:
    texts = [f"text number {i}" for i in range(4000)]
    found = uniforms(texts)
    assert torch.equal(uniforms(texts[::-1]), found.flip(0))
    assert uniforms(["a"]).item() == 0.2537936105758485  # on every machine
    assert found.min() >= 0 and found.max() < 1 and found.unique().numel() == 4000
    gap = (found.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max().item()
    assert gap < 1.95 / math.sqrt(4000)  # Kolmogorov and Smirnov, at one in a thousand
    assert uniforms([]).shape == (0,)
