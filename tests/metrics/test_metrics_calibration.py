"""Calibration errors against plain loops, hand-made cases and torchmetrics."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from bayestune.errors import ConfigError, DataError
from bayestune.metrics import adaptive_ece, classwise_ece, ece, mce, reliability, top_label

checked = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def draw(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return logits.softmax(1), torch.randint(classes, (rows,), generator=g)


def binary(confidences: list[float]) -> Tensor:
    c = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([c, 1 - c], 1)


def gaps(groups: list[list[tuple[float, float]]]) -> list[tuple[int, float]]:
    """Size and |accuracy - confidence| of each group of (confidence, correct)."""
    found = []
    for group in groups:
        if group:
            confidence = math.fsum(c for c, _ in group) / len(group)
            found.append((len(group), abs(sum(a for _, a in group) / len(group) - confidence)))
    return found


def equal_width(rows: list[tuple[float, float]], bins: int) -> list[list[tuple[float, float]]]:
    groups: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for c, a in rows:
        for b in range(bins):
            lower, upper = b / bins, (b + 1) / bins
            if lower < c <= upper or (b == 0 and c == 0):
                groups[b].append((c, a))
    return groups


def equal_mass(rows: list[tuple[float, float]], bins: int) -> list[list[tuple[float, float]]]:
    groups: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for c, a in rows:
        below = sum(other < c for other, _ in rows)
        equal = sum(other == c for other, _ in rows)
        # The middle of the ranks that the tied rows share, as a share of all ranks.
        middle = Fraction(2 * below + equal, 2 * len(rows))
        groups[int(middle * bins)].append((c, a))
    return groups


def pairs(probs: Tensor, labels: Tensor) -> list[tuple[float, float]]:
    return [
        (max(p), float(max(range(len(p)), key=p.__getitem__) == y))
        for p, y in zip(probs.tolist(), labels.tolist(), strict=True)
    ]


@pytest.mark.parametrize("classes", [2, 4, 150, 1000])
@pytest.mark.parametrize("bins", [1, 15, 20])
def test_top_label_errors_equal_plain_loops(classes: int, bins: int) -> None:
    probs, labels = draw(90, classes, seed=bins)
    rows = pairs(probs, labels)
    wide, heavy = gaps(equal_width(rows, bins)), gaps(equal_mass(rows, bins))
    assert ece(probs, labels, bins) == pytest.approx(sum(n * g for n, g in wide) / 90, rel=1e-12)
    assert mce(probs, labels, bins) == pytest.approx(max(g for _, g in wide), rel=1e-12)
    assert adaptive_ece(probs, labels, bins) == pytest.approx(
        sum(n * g for n, g in heavy) / 90, rel=1e-12
    )


@pytest.mark.parametrize("classes", [2, 5, 60])
def test_classwise_error_equals_plain_loops(classes: int) -> None:
    probs, labels = draw(70, classes)
    labels[labels == 1] = 0  # class 1 has no row and still counts
    total = 0.0
    for k in range(classes):
        rows = [(p[k], float(y == k)) for p, y in zip(probs.tolist(), labels.tolist(), strict=True)]
        total += sum(n * g for n, g in gaps(equal_width(rows, 15))) / 70
    assert classwise_ece(probs, labels) == pytest.approx(total / classes, rel=1e-12)


def test_borders_belong_to_the_bin_below() -> None:
    at_border = [b / 15 for b in range(16)]
    found = reliability(at_border, [1] * 16).counts.tolist()
    assert found == [2, *[1] * 14]  # 0 and 1/15 share the first; exactly 1 is in the last
    just_above = [math.nextafter(b / 15, 2) for b in range(15)]
    assert reliability(just_above, [1] * 15).counts.tolist() == [1] * 15
    assert reliability([0.2], [1]).counts.nonzero().item() == 2
    assert reliability(torch.tensor([0.2]), [1]).counts.nonzero().item() == 3


def test_a_confidence_within_tolerance_above_one_is_in_the_last_bin() -> None:
    assert reliability([1.0005], [1]).counts.tolist() == [0] * 14 + [1]
    assert ece([[1.0005, 0.0]], [0]) == pytest.approx(0.0005)


def test_confidence_of_one_is_in_the_last_bin_not_in_one_of_its_own() -> None:
    probs, labels = binary([0.95, 1.0]), [0, 1]
    assert ece(probs, labels) == pytest.approx(abs(0.5 - 0.975))
    assert mce(probs, labels) == pytest.approx(abs(0.5 - 0.975))
    phantom = (0.05 + 1.0) / 2
    assert ece(probs, labels, binning="torchmetrics") == pytest.approx(phantom, abs=1e-7)
    assert mce(probs, labels, binning="torchmetrics") == pytest.approx(1.0)


def installed_torchmetrics_has_the_phantom_bin() -> bool:
    probs = binary([0.95, 1.0]).float()
    value = multiclass_calibration_error(probs, torch.tensor([0, 1]), num_classes=2, n_bins=15)
    return value.item() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "sharpness"), [(2, 4.0), (5, 20.0), (1000, 40.0)])
def test_the_torchmetrics_switch_reproduces_the_library(
    dtype: torch.dtype, classes: int, sharpness: float
) -> None:
    if not installed_torchmetrics_has_the_phantom_bin():
        pytest.skip("the installed torchmetrics puts a confidence of 1 into the last bin")
    g = torch.Generator().manual_seed(classes)
    probs = (sharpness * torch.randn(400, classes, generator=g, dtype=dtype)).softmax(1)
    labels = torch.where(
        torch.rand(400, generator=g) < 0.6,
        probs.argmax(1),
        torch.randint(classes, (400,), generator=g),
    )
    # Ones that are half wrong beside right rows at 0.97: merged into one bin, their gaps cancel.
    top = torch.cat(
        [
            torch.ones(16, dtype=dtype),
            torch.full((40,), 0.97, dtype=dtype),
            # Wrong on the borders, right just below: the gaps cancel if a border moves.
            torch.linspace(0, 1, 16)[8:15].to(dtype),
            torch.linspace(0, 1, 16)[8:15].to(dtype) - 0.02,
        ]
    )
    rows = torch.arange(top.numel())
    probs[rows] = 0.0
    probs[rows, 0], probs[rows, 1] = top, 1 - top
    labels[rows] = torch.where(top == 1, rows % 2, 0)
    labels[56:63] = 1
    for p, y in ((probs, labels), (probs[rows], labels[rows])):
        for bins in (10, 15):
            theirs = [
                multiclass_calibration_error(p, y, classes, bins, norm=norm).item()
                for norm in ("l1", "max")
            ]
            assert ece(p, y, bins, "torchmetrics") == pytest.approx(theirs[0], abs=2e-6)
            assert mce(p, y, bins, "torchmetrics") == pytest.approx(theirs[1], abs=2e-6)
    assert abs(ece(p, y) - theirs[0]) > 0.01


def test_empty_bins_weigh_nothing_and_are_marked() -> None:
    found = reliability([0.5, 0.5, 0.9], [True, False, True], bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 1, 0]
    assert found.confidence.isnan().tolist() == (found.counts == 0).tolist()
    assert found.accuracy.isnan().tolist() == (found.counts == 0).tolist()
    assert found.gap.tolist() == pytest.approx([0.0] * 8 + [0.1, 0.0])
    assert found.ece == pytest.approx(0.1 / 3)
    assert found.mce == pytest.approx(0.1)
    assert found.edges.tolist() == [b / 10 for b in range(11)]


@pytest.mark.parametrize("metric", [ece, mce, adaptive_ece])
@pytest.mark.parametrize("bins", [1, 15])
def test_equal_confidences_leave_one_gap(metric, bins: int) -> None:
    probs = binary([0.7] * 8)
    assert metric(probs, [0, 0, 1, 0, 0, 0, 1, 1], bins) == pytest.approx(0.7 - 5 / 8)


@pytest.mark.parametrize("metric", [ece, mce, adaptive_ece, classwise_ece])
def test_one_row(metric) -> None:
    assert metric([[0.8, 0.2]], [0]) == pytest.approx(0.2)
    assert metric([[0.0, 1.0]], [1]) == 0.0
    assert metric([[0.0, 1.0]], [0]) == 1.0


def test_a_calibrated_predictor_has_no_error() -> None:
    probs = binary([0.75] * 4 + [1.0] * 3)
    labels = [0, 0, 0, 1, 0, 0, 0]
    for metric in (ece, mce, adaptive_ece, classwise_ece):
        assert metric(probs, labels) == pytest.approx(0.0, abs=1e-15)


def test_adaptive_bins_without_ties_are_equal_slices_of_the_sorted_rows() -> None:
    probs, labels = draw(60, 3)
    confidence, correct = top_label(probs, labels)
    order = confidence.argsort()
    slices = (correct - confidence)[order].reshape(15, 4).mean(1).abs()
    assert adaptive_ece(probs, labels, bins=15) == pytest.approx(slices.mean().item(), rel=1e-12)


def test_adaptive_bins_never_split_equal_confidences() -> None:
    # Six equal rows, half of them right: any split by position could show a gap of up to 0.5.
    probs = binary([0.5] * 6 + [0.9, 0.95])
    for labels in ([0, 0, 0, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 0, 0]):
        assert adaptive_ece(probs, labels, bins=4) == pytest.approx((0.1 + 0.05) / 8)


@checked
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.5, 0.6, 2 / 3, 0.8, 0.9, 1.0]), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    bins=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_values_do_not_depend_on_the_order_of_rows(rows, bins: int, seed: int) -> None:
    probs, labels = binary([c for c, _ in rows]), torch.tensor([int(w) for _, w in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for metric in (ece, mce, adaptive_ece, classwise_ece):
        value = metric(probs, labels, bins)
        assert metric(probs[order], labels[order], bins) == pytest.approx(value, abs=1e-12)
        assert 0 <= value <= 1
    assert ece(probs, labels, bins) <= mce(probs, labels, bins) + 1e-12
    # Merging all bins can only cancel gaps.
    assert ece(probs, labels, 1) <= ece(probs, labels, bins) + 1e-12


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
@pytest.mark.parametrize("metric", [ece, mce, adaptive_ece, classwise_ece])
def test_bins_must_be_a_positive_integer(metric, bins) -> None:
    with pytest.raises(ConfigError, match="bins"):
        metric([[0.5, 0.5]], [0], bins)


def test_a_logit_is_no_confidence() -> None:
    with pytest.raises(DataError, match="not its logit"):
        reliability([0.5, 3.2], [1, 0])
