"""Separation of in- and out-of-distribution scores against loops over pairs and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve
from torch import Tensor

from bayestune.errors import ConfigError, DataError
from bayestune.metrics import aupr, auroc, fpr_at_recall, roc_curve

checked = settings(max_examples=40, deadline=None, derandomize=True, database=None)

# Few distinct values, so that ties are common.
scores = st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 2.0]), min_size=1, max_size=25)


def draw(rows: int, other: int, decimals: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    inside = torch.randn(rows, generator=g, dtype=torch.float64)
    outside = 1 + torch.randn(other, generator=g, dtype=torch.float64)
    return inside.round(decimals=decimals), outside.round(decimals=decimals)


def sklearn_view(inside, outside) -> tuple[np.ndarray, np.ndarray]:
    labels = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    return labels, np.r_[np.asarray(inside), np.asarray(outside)]


@checked
@given(inside=scores, outside=scores)
def test_auroc_counts_pairs_and_half_of_ties(inside, outside) -> None:
    won = sum((o > i) + (o == i) / 2 for i in inside for o in outside)
    assert auroc(inside, outside) == pytest.approx(won / len(inside) / len(outside), abs=1e-14)
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside), abs=1e-14)


@checked
@given(inside=scores, outside=scores)
def test_the_area_under_the_roc_curve_is_the_auroc(inside, outside) -> None:
    curve = roc_curve(inside, outside)
    area = torch.trapezoid(curve.true_positive, curve.false_positive)
    assert float(area) == pytest.approx(auroc(inside, outside), abs=1e-12)


def test_roc_curve_has_the_corners_of_sklearn() -> None:
    inside, outside = draw(60, 40, 1)
    x, y, _ = sklearn_roc_curve(*sklearn_view(inside, outside), drop_intermediate=False)
    curve = roc_curve(inside, outside)
    np.testing.assert_allclose(curve.false_positive, x, atol=1e-12)
    np.testing.assert_allclose(curve.true_positive, y, atol=1e-12)


def test_roc_curve_is_read_off_on_its_lines_and_at_the_top_of_its_steps() -> None:
    # Corners (0, 0), (0, ½), (½, ½), (1, 1): a step up, one to the right, a tie.
    curve = roc_curve([2.0, 1.0], [3.0, 1.0])
    rates = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert curve.at(rates).tolist() == [0.5, 0.5, 0.5, 0.75, 1.0]


@checked
@given(inside=scores, outside=scores)
def test_aupr_equals_sklearn_with_ties(inside, outside) -> None:
    expected = average_precision_score(*sklearn_view(inside, outside))
    assert aupr(inside, outside) == pytest.approx(expected, abs=1e-12)


@checked
@given(inside=scores, outside=scores, recall=st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0]))
def test_fpr_is_the_smallest_over_thresholds_that_keep_the_recall(inside, outside, recall) -> None:
    allowed = [
        sum(o <= t for o in outside) / len(outside)
        for t in inside
        if sum(i <= t for i in inside) / len(inside) >= recall
    ]
    assert fpr_at_recall(inside, outside, recall) == pytest.approx(min(allowed), abs=1e-14)


@pytest.mark.parametrize("decimals", [1, 12])
def test_many_rows_equal_sklearn(decimals: int) -> None:
    inside, outside = draw(60_000, 30_000, decimals)
    view = sklearn_view(inside, outside)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(*view), abs=1e-12)
    assert aupr(inside, outside) == pytest.approx(average_precision_score(*view), abs=1e-12)


def test_a_monotone_map_of_the_scores_changes_nothing() -> None:
    inside, outside = draw(300, 200, decimals=2)
    for metric in (auroc, aupr, fpr_at_recall):
        assert metric(inside.exp(), outside.exp()) == metric(inside, outside)


def test_perfect_separation_its_reverse_and_no_information() -> None:
    low, high = [0.1, 0.2, 0.3], [0.7, 0.8]
    assert (auroc(low, high), aupr(low, high), fpr_at_recall(low, high)) == (1.0, 1.0, 0.0)
    assert auroc(high, low) == 0.0
    assert fpr_at_recall(high, low) == 1.0
    same = [0.5] * 3, [0.5] * 2
    assert (auroc(*same), aupr(*same), fpr_at_recall(*same)) == (0.5, 0.4, 1.0)
    assert (auroc([1.0], [2.0]), aupr([1.0], [2.0]), fpr_at_recall([1.0], [2.0])) == (1, 1, 0)


def test_fpr95_reads_the_threshold_off_the_in_distribution_rows() -> None:
    inside = torch.arange(1, 21)  # 19 of 20 rows are exactly 95 %
    outside = [18.5, 19.0, 19.5, 30.0]
    assert fpr_at_recall(inside, outside) == 0.5  # 18.5 and the tie at 19 are accepted
    assert fpr_at_recall(inside, outside, recall=0.951) == 0.75
    # Not the share of ID rows flagged when 95 % of the OOD rows are found, which is 0.15 here.
    found = 18.5
    assert (inside >= found).double().mean().item() != fpr_at_recall(inside, outside)


def test_bad_scores_are_refused() -> None:
    for metric in (auroc, aupr, fpr_at_recall):
        with pytest.raises(DataError, match="ood_scores: no rows"):
            metric([0.5], [])
        with pytest.raises(DataError, match="id_scores: row 1 is inf"):
            metric([0.5, float("inf")], [0.5])
    with pytest.raises(ConfigError, match="recall"):
        fpr_at_recall([0.5], [0.5], recall=0.0)
