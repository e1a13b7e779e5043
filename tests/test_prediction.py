"""Predictions as users and the command line see them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from bayestune.posterior.predictive import Predictive
from bayestune.prediction import Prediction

NAMES = ("no", "yes", "perhaps")
LOGITS = torch.tensor([[3.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-2.0, 1.0, 4.0]])


@pytest.fixture
def prediction() -> Prediction:
    predictive = Predictive.from_moments(LOGITS, torch.full_like(LOGITS, 0.5))
    return Prediction.of(predictive, NAMES, torch.tensor([1.0, 2.0, 3.0]))


def test_labels_are_the_names_of_the_most_probable_classes(prediction: Prediction) -> None:
    assert prediction.labels[::2] == ["no", "perhaps"]
    assert prediction.indices.tolist()[::2] == [0, 2]
    assert prediction.names == NAMES
    assert len(prediction) == 3
    assert torch.equal(prediction.confidence, prediction.probs.max(1).values)


def test_the_numbers_are_those_of_the_predictive() -> None:
    predictive = Predictive.from_moments(LOGITS, torch.full_like(LOGITS, 0.5))
    prediction = Prediction.of(predictive, list(NAMES))
    for name in ("probs", "entropy", "aleatoric", "epistemic"):
        assert torch.equal(getattr(prediction, name), getattr(predictive, name))
    assert torch.equal(prediction.ood_score, predictive.epistemic)


def test_rows_are_json_in_the_order_of_the_ids(prediction: Prediction) -> None:
    rows = [json.loads(json.dumps(row)) for row in prediction.rows(["a", 7, "c"])]
    assert [row["id"] for row in rows] == ["a", 7, "c"]
    assert list(rows[0]) == [
        "id",
        "label",
        "probs",
        "confidence",
        "entropy",
        "aleatoric",
        "epistemic",
        "ood_score",
    ]
    for row, score in zip(rows, (1.0, 2.0, 3.0), strict=True):
        assert list(row["probs"]) == list(NAMES)
        assert math.isclose(sum(row["probs"].values()), 1, rel_tol=1e-6)
        assert row["confidence"] == max(row["probs"].values()) == row["probs"][row["label"]]
        assert math.isclose(row["entropy"], row["aleatoric"] + row["epistemic"], rel_tol=1e-6)
        assert row["ood_score"] == score


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 3, 4]])
def test_rows_need_an_id_each(prediction: Prediction, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="zip"):
        list(prediction.rows(ids))


def test_a_prediction_cannot_be_changed(prediction: Prediction) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.names = ("a",)  # pyright: ignore[reportAttributeAccessIssue]


def test_no_rows_are_no_rows() -> None:
    prediction = Prediction.of(Predictive.from_point(torch.zeros(0, 3)), NAMES)
    assert len(prediction) == 0 and prediction.labels == [] and list(prediction.rows([])) == []
    assert prediction.confidence.shape == (0,)
