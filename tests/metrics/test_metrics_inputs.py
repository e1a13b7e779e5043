"""What the metrics accept and how they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayestune import metrics
from bayestune.errors import ConfigError, DataError
from bayestune.metrics.inputs import as_probabilities, count_for_share

PROBS = [[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]]
LABELS = [0, 1, 1]


def test_every_public_name_exists_and_is_sorted_into_all() -> None:
    assert len(set(metrics.__all__)) == len(metrics.__all__)
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        tuple,
        np.array,
        lambda x: np.array(x)[::-1].copy()[::-1],
        lambda x: [torch.tensor(row) for row in x],
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.float16),
    ],
)
def test_every_container_and_float_type_gives_the_same_value(convert) -> None:
    given = convert(PROBS)
    if isinstance(given, list) and isinstance(given[0], torch.Tensor):
        given = torch.stack(given)
    assert metrics.nll(given, LABELS) == metrics.nll(PROBS, LABELS)
    assert metrics.ece(given, np.array(LABELS, dtype=np.int32)) == metrics.ece(PROBS, LABELS)


def test_a_read_only_array_is_accepted_without_a_warning() -> None:
    probs = np.array(PROBS)
    probs.flags.writeable = False
    assert metrics.accuracy(probs, LABELS) == pytest.approx(2 / 3)


def test_lists_do_not_pass_through_float32() -> None:
    third = 1 / 3
    assert as_probabilities([[third, 1 - third]])[0, 0].item() == third


def test_nothing_is_renormalised() -> None:
    probs = torch.tensor([[0.6004, 0.4]], dtype=torch.float64)
    assert torch.equal(as_probabilities(probs), probs)


@pytest.mark.parametrize(
    ("probs", "words"),
    [
        ([0.5, 0.5], "expected \\(N, K\\)"),
        ([[1.0], [1.0]], "K ≥ 2"),
        (torch.zeros(0, 3), "no rows"),
        ([[0.5, 0.5], [float("nan"), 1.0]], "row 1, class 0 is nan"),
        ([[0.5, 0.5], [0.0, float("inf")]], "row 1, class 1 is inf"),
        ([[1.1, -0.1]], "row 0, class 1"),
        ([[2.0, -1.0]], "softmax outputs, not logits"),
        ([[0.5, 0.5], [0.5, 0.4]], "row 1 sums to 0.9"),
        ([[0.5, 0.5], [0.5]], "rectangular"),
        ([["a", "b"]], "rectangular"),
        (torch.ones(1, 2, dtype=torch.complex64) / 2, "complex"),
        (None, "NoneType"),
    ],
)
def test_bad_probabilities_are_refused_with_the_place(probs, words: str) -> None:
    with pytest.raises(DataError, match=words):
        metrics.ece(probs, [0])


def test_tolerances_are_the_stated_ones() -> None:
    as_probabilities([[0.5009, 0.5], [1.0, -9e-7]])
    with pytest.raises(DataError, match="sums to"):
        as_probabilities([[0.5011, 0.5]])
    with pytest.raises(DataError, match="class 1"):
        as_probabilities([[1.0, -1.1e-6]])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "probs has 3 rows and labels has 2"),
        ([0, 1, 2], "row 2 is 2, expected 0 to 1"),
        ([0, -100, 1], "row 1 is -100"),
        ([0.0, 1.0, 1.0], "expected integers"),
        ([[0], [1], [1]], "expected \\(N,\\)"),
        ([], "no rows"),
    ],
)
def test_bad_labels_are_refused_with_the_place(labels, words: str) -> None:
    with pytest.raises(DataError, match=words):
        metrics.accuracy(PROBS, labels)


@pytest.mark.parametrize(
    ("confidence", "correct", "words"),
    [
        ([0.5], [1, 0], "same number"),
        ([[0.5]], [1], "expected \\(N,\\)"),
        ([], [], "no rows"),
        ([float("nan")], [1], "row 0 is nan"),
        ([0.5, 0.5], [1, 2], "row 1 is 2"),
    ],
)
def test_bad_confidences_are_refused(confidence, correct, words: str) -> None:
    with pytest.raises(DataError, match=words):
        metrics.reliability(confidence, correct)
    with pytest.raises(DataError, match=words):
        metrics.aurc(confidence, correct)


def test_an_unknown_choice_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'torchmetrics'"):
        metrics.ece(PROBS, LABELS, binning="torchmetric")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="reduction"):
        metrics.nll(PROBS, LABELS, reduction="sum")  # pyright: ignore[reportCallIssue,reportArgumentType]


def test_count_for_share_is_exact_for_every_hundredth() -> None:
    for percent in range(1, 101):
        for rows in (1, 7, 20, 60, 100, 1000):
            wanted = -(-percent * rows // 100)
            assert count_for_share(percent / 100, rows, "share") == wanted
    for share in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            count_for_share(share, 10, "share")
