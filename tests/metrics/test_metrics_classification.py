"""Accuracy, likelihood and Brier score against plain loops and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.metrics import accuracy, brier, nll, top_label


def draw(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return logits.softmax(1), torch.randint(classes, (rows,), generator=g)


@pytest.mark.parametrize("classes", [2, 3, 150, 1000])
def test_all_three_equal_plain_loops(classes: int) -> None:
    probs, labels = draw(40, classes, seed=classes)
    rows = list(zip(probs.tolist(), labels.tolist(), strict=True))
    right = [float(max(range(classes), key=p.__getitem__) == y) for p, y in rows]
    logs = [-math.log(p[y]) for p, y in rows]
    squares = [sum((q - (k == y)) ** 2 for k, q in enumerate(p)) for p, y in rows]
    for metric, per_row in ((accuracy, right), (nll, logs), (brier, squares)):
        assert metric(probs, labels, reduction="none").tolist() == pytest.approx(per_row)
        assert metric(probs, labels) == pytest.approx(sum(per_row) / len(rows), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 5])
def test_all_three_equal_sklearn(classes: int) -> None:
    probs, labels = draw(200, classes)
    names = list(range(classes))
    assert accuracy(probs, labels) == accuracy_score(labels, probs.argmax(1))
    assert nll(probs, labels) == pytest.approx(log_loss(labels, probs.numpy(), labels=names))
    theirs = brier_score_loss(labels, probs.numpy(), labels=names, scale_by_half=False)
    assert brier(probs, labels) == pytest.approx(theirs)


def test_low_precision_inputs_are_summed_in_float64() -> None:
    probs = torch.full((5000, 2), 0.5, dtype=torch.bfloat16)
    labels = torch.zeros(5000, dtype=torch.int64)
    assert nll(probs, labels) == pytest.approx(math.log(2), rel=1e-14)
    assert nll(probs, labels, reduction="none").dtype == torch.float64


def test_a_probability_of_zero_costs_the_documented_number() -> None:
    assert nll([[1.0, 0.0]], [1]) == pytest.approx(708.396, abs=1e-3)
    assert nll([[1.0, 0.0]], [1], eps=1e-3) == pytest.approx(math.log(1000))
    assert nll([[1.0, 0.0]], [0]) == 0.0
    assert nll([[1 - 1e-300, 1e-300]], [1]) == pytest.approx(300 * math.log(10))
    for eps in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="eps"):
            nll([[0.5, 0.5]], [0], eps=eps)


def test_brier_spans_zero_to_two() -> None:
    assert brier([[1.0, 0.0, 0.0]], [0]) == 0.0
    assert brier([[1.0, 0.0, 0.0]], [1]) == 2.0


def test_equal_probabilities_predict_the_lowest_class() -> None:
    probs = [[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]
    confidence, correct = top_label(probs, [0, 2])
    assert confidence.tolist() == [0.4, 0.4]
    assert correct.tolist() == [1.0, 0.0]
    assert accuracy(probs, [0, 2]) == 0.5
