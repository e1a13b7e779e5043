"""Bootstrap intervals against normal theory, an independent bootstrap and their own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.metrics import (
    auroc,
    bootstrap,
    bootstrap_interval,
    ece,
    mean_interval,
    nll,
    paired_difference,
)


def draw(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_fast_mean_equals_the_general_bootstrap() -> None:
    values = draw(80)
    general = bootstrap_interval(torch.mean, values, resamples=200, seed=3)
    fast = mean_interval(values, resamples=200, seed=3)
    assert (fast.low, fast.high) == pytest.approx((general.low, general.high), rel=1e-12)
    assert fast.estimate == pytest.approx(values.mean().item(), rel=1e-12)


def test_ends_are_the_quantiles_of_the_resampled_statistic() -> None:
    seen: list[float] = []

    def median(x: Tensor) -> Tensor:
        seen.append(x.median().item())
        return x.median()

    found = bootstrap_interval(median, draw(41), level=0.8, resamples=99)
    assert len(seen) == 100
    assert found.estimate == seen[0]
    assert [found.low, found.high] == pytest.approx(np.quantile(seen[1:], [0.1, 0.9]).tolist())


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.959964), (0.68, 0.994458)])
def test_the_interval_of_a_mean_has_the_width_of_normal_theory(level: float, z: float) -> None:
    values = draw(500)
    found = mean_interval(values, level=level, resamples=4000)
    half = z * values.std(correction=0).item() / math.sqrt(500)
    assert found.estimate - found.low == pytest.approx(half, rel=0.08)
    assert found.high - found.estimate == pytest.approx(half, rel=0.08)


def test_an_independent_bootstrap_agrees() -> None:
    values = draw(60, seed=5).exp()
    rng = np.random.default_rng(0)
    means = values.numpy()[rng.integers(60, size=(20_000, 60))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    found = mean_interval(values, resamples=20_000)
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(300):
        found = mean_interval(draw(60, seed=seed), level=0.9, resamples=200, seed=seed)
        hits += found.low <= 0.0 <= found.high
    # 0.9 less the small-sample loss of a percentile interval, at 4 standard errors.
    assert hits / 300 == pytest.approx(0.89, abs=4 * math.sqrt(0.09 / 300))


def test_rows_of_all_arrays_stay_together_and_keep_their_types() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], dtype=torch.float32)
    rows = torch.arange(3)

    def check(p: Tensor, i: Tensor) -> float:
        assert p.dtype == torch.float32
        assert i.dtype == torch.int64
        assert torch.equal(p, probs[i])
        return 1.0

    bootstrap_interval(check, probs, rows, resamples=20)


def test_a_metric_of_this_package_can_be_the_statistic() -> None:
    g = torch.Generator().manual_seed(0)
    probs = torch.randn(100, 3, generator=g).softmax(1)
    labels = torch.randint(3, (100,), generator=g)
    found = bootstrap_interval(ece, probs, labels, resamples=100)
    assert found.estimate == ece(probs, labels)
    assert found.low < found.high
    by_rows = mean_interval(nll(probs, labels, reduction="none"), resamples=100)
    general = bootstrap_interval(nll, probs.numpy(), labels.tolist(), resamples=100)
    assert by_rows.low == pytest.approx(general.low, rel=1e-12)


def test_independent_samples_are_drawn_each_on_its_own() -> None:
    a, b = draw(400), draw(250, seed=1) + 1
    found = bootstrap_interval(auroc, a, b, together=False, resamples=2000)
    # Hanley and McNeil 1982: the standard error of the area from placements.
    area = found.estimate
    wins = (b[None, :] > a[:, None]).double()  # (N, M)
    variance = wins.mean(1).var() / len(a) + wins.mean(0).var() / len(b)
    half = 1.959964 * float(variance) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert found.low < area < found.high
    seen: set[bool] = set()

    def note(x: Tensor, y: Tensor) -> float:
        seen.add(torch.equal(x, y))
        return 0.0

    same = torch.arange(30)
    bootstrap_interval(note, same, same, together=False, resamples=20)
    assert seen == {True, False}  # equal on all rows as given, never on drawn ones


def test_the_same_seed_gives_the_same_interval_and_leaves_the_global_one_alone() -> None:
    values = draw(30)
    state = torch.get_rng_state()
    first = mean_interval(values, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert mean_interval(values, seed=1) == first
    assert mean_interval(values, seed=2) != first


def test_blocks_make_up_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK", 64)
    seen = []
    bootstrap_interval(lambda x: seen.append(len(x)) or 0.0, draw(30), resamples=7)
    assert seen == [30] * 8
    monkeypatch.setattr(bootstrap, "_BLOCK", 1)
    assert mean_interval(draw(30), resamples=3).low < mean_interval(draw(30), resamples=3).high


def test_pairing_finds_a_difference_that_separate_intervals_hide() -> None:
    shared, noise = draw(200, seed=1), draw(200, seed=2)
    a, b = 5 * shared + 0.2, 5 * shared + 0.1 * noise
    found = paired_difference(a, b)
    assert found.mean == pytest.approx((a - b).mean().item())
    assert found.low < found.mean < found.high
    assert found.excludes_zero
    assert mean_interval(a).low < mean_interval(b).high
    reverse = paired_difference(b, a)
    assert reverse.excludes_zero
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))


def test_no_difference_and_a_single_row_do_not_exclude_zero() -> None:
    values = draw(50)
    same = paired_difference(values, values)
    assert (same.mean, same.low, same.high, same.excludes_zero) == (0.0, 0.0, 0.0, False)
    assert not paired_difference(values, draw(50, seed=9)).excludes_zero
    single = paired_difference([2.0], [1.0])
    assert (single.low, single.high, single.excludes_zero) == (1.0, 1.0, False)
    assert paired_difference([2.0, 2.0], [1.0, 1.0]).excludes_zero


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="no array"):
        bootstrap_interval(torch.mean)
    with pytest.raises(DataError, match="array 0 has 2 rows and array 1 has 1"):
        bootstrap_interval(torch.mean, [1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="N ≥ 1"):
        bootstrap_interval(torch.mean, [])
    with pytest.raises(DataError, match="same number"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(NumericsError, match="nan on all rows"):
        bootstrap_interval(lambda x: float("nan"), [1.0])
    for level in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="level"):
            mean_interval([1.0], level=level)
    with pytest.raises(ConfigError, match="resamples"):
        mean_interval([1.0], resamples=0)
    with pytest.raises(ConfigError, match="seed"):
        mean_interval([1.0], seed=-1)
