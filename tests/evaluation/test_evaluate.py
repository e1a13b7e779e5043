"""The numbers of an evaluation against a computation by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score
from toy_tasks import choice_rows, foreign_texts, topic_rows

from bayestune.data import Task
from bayestune.errors import DataError
from bayestune.evaluation import Evaluation, evaluate
from bayestune.model import BayesModel
from bayestune.prediction import Prediction
from bayestune.progress import silent
from bayestune.training import fit

OOD_KEYS = {
    "auroc_max_prob",
    "auroc_entropy",
    "auroc_mutual_information",
    "auroc_density",
    "aupr_max_prob",
    "aupr_entropy",
    "aupr_mutual_information",
    "aupr_density",
    "fpr95",
    "fpr95_entropy",
    "fpr95_mutual_information",
    "fpr95_density",
}


@pytest.fixture(scope="module")
def noisy_test(clear) -> Task:
    return Task.from_rows(topic_rows(120, 50, wrong=0.3), like=clear)


@pytest.fixture(scope="module")
def evaluation(trained, noisy_test) -> Evaluation:
    return evaluate(
        trained, noisy_test, ood={"foreign": foreign_texts(60), "near": ["why", "when"]}
    )


# in-distribution --------------------------------------------------------------------------------


def test_accuracy_likelihood_and_brier_are_those_by_hand(evaluation, noisy_test) -> None:
    probs, labels = evaluation.prediction.probs.double(), noisy_test.targets
    assert evaluation.n == len(noisy_test) == 120
    assert evaluation.targets.tolist() == labels
    assert evaluation.accuracy == accuracy_score(labels, probs.argmax(1).tolist())
    picked = [float(probs[i, k]) for i, k in enumerate(labels)]
    assert evaluation.nll == pytest.approx(-sum(map(math.log, picked)) / 120, rel=1e-6)
    squares = [
        sum((float(probs[i, j]) - (j == k)) ** 2 for j in range(3)) for i, k in enumerate(labels)
    ]
    assert evaluation.brier == pytest.approx(sum(squares) / 120, rel=1e-6)
    assert 0.5 < evaluation.accuracy < 0.9  # neither trivial nor at an edge


def test_calibration_is_counted_in_15_right_closed_bins(evaluation, noisy_test) -> None:
    confidence, predicted = evaluation.prediction.probs.double().max(1)
    correct = predicted == torch.tensor(noisy_test.targets)
    total = 0.0
    gaps: list[float] = []
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(float(correct[inside].double().mean() - confidence[inside].mean()))
            gaps.append(gap)
            total += float(inside.double().mean()) * gap
    assert len(gaps) > 4
    assert evaluation.ece == pytest.approx(total, abs=1e-6)
    assert evaluation.mce == pytest.approx(max(gaps), abs=1e-6)


def test_the_risk_coverage_area_is_the_mean_risk_over_coverages(evaluation, noisy_test) -> None:
    confidence, predicted = evaluation.prediction.probs.max(1)
    wrong = (predicted != torch.tensor(noisy_test.targets))[confidence.argsort(descending=True)]
    risks = [float(wrong[: k + 1].double().mean()) for k in range(120)]
    assert len(confidence.unique()) == 120, "ties would need a mean over their orders"
    assert evaluation.aurc == pytest.approx(sum(risks) / 120, rel=1e-6)


def test_intervals_hold_their_number(evaluation) -> None:
    for name, (low, high) in evaluation.intervals.items():
        assert low < getattr(evaluation, name) < high, name
    assert set(evaluation.intervals) == {"accuracy", "nll", "ece", "brier", "aurc"}
    half = 1.96 * (evaluation.accuracy * (1 - evaluation.accuracy) / 120) ** 0.5
    low, high = evaluation.intervals["accuracy"]
    assert high - low == pytest.approx(2 * half, rel=0.15)
    for name, intervals in evaluation.ood_intervals.items():
        assert set(intervals) == {*SCORES, "fpr95"}
        for metric, (low, high) in intervals.items():
            assert low <= evaluation.ood[name][metric] <= high, metric
            assert high - low < (1.01 if metric == "fpr95" else 0.5)


def test_numbers_are_plain_json(evaluation) -> None:
    data = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert {"n", "accuracy", "nll", "ece", "brier", "aurc", "ood"} <= set(data)
    assert data["n"] == 120 and data["nll"] == evaluation.nll
    assert data["ood"] == evaluation.ood
    assert "prediction" not in data


# out-of-distribution ----------------------------------------------------------------------------

SCORES: dict[str, Any] = {
    "auroc_max_prob": lambda p: -p.confidence,
    "auroc_entropy": lambda p: p.entropy,
    "auroc_mutual_information": lambda p: p.epistemic,
    "auroc_density": lambda p: p.ood_score,
}


def test_foreign_rows_are_the_positives_of_every_score(evaluation) -> None:
    assert list(evaluation.ood) == ["foreign", "near"]
    inside = evaluation.prediction
    for name, outside in evaluation.ood_predictions.items():
        found = evaluation.ood[name]
        assert set(found) == OOD_KEYS
        truth = [0] * len(inside) + [1] * len(outside)
        for key, score in SCORES.items():
            scores = torch.cat([score(inside), score(outside)]).double().tolist()
            assert found[key] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9), key
            precision = average_precision_score(truth, scores)
            assert found[key.replace("auroc", "aupr")] == pytest.approx(precision, abs=1e-9), key
    assert evaluation.ood["foreign"]["auroc_density"] > 0.8


def test_fpr95_is_what_the_threshold_of_95_percent_lets_in(evaluation) -> None:
    inside, outside = evaluation.prediction, evaluation.ood_predictions["foreign"]
    kept = sorted(inside.confidence.tolist(), reverse=True)
    threshold = kept[math.ceil(0.95 * len(kept)) - 1]
    assert sum(c >= threshold for c in kept) >= 0.95 * len(kept)
    accepted = sum(c >= threshold for c in outside.confidence.tolist()) / len(outside)
    assert evaluation.ood["foreign"]["fpr95"] == pytest.approx(accepted)


def test_a_point_method_has_no_mutual_information_to_detect_with(trained_mle, clear_test) -> None:
    found = evaluate(trained_mle, clear_test, ood={"foreign": foreign_texts(40)})
    assert found.ood["foreign"]["auroc_mutual_information"] == 0.5
    assert set(found.ood["foreign"]) == OOD_KEYS
    assert all(isinstance(v, float) and 0 <= v <= 1 for v in found.ood["foreign"].values())
    assert not found.prediction.epistemic.any()


def test_out_of_distribution_rows_need_no_label_and_may_carry_any(trained, clear_test) -> None:
    texts = foreign_texts(20)
    task = Task.from_rows([{"text": t, "label": ("x", "y")[i % 2]} for i, t in enumerate(texts)])
    found = evaluate(
        trained,
        clear_test,
        ood={"texts": texts, "rows": [{"text": t} for t in texts], "task": task},
    ).ood
    assert found["texts"] == found["rows"] == found["task"]


def test_without_foreign_rows_there_is_no_detection(trained, clear_test) -> None:
    assert evaluate(trained, clear_test).ood == {}
    assert evaluate(trained, clear_test, ood={}).to_json()["ood"] == {}


# what may not matter, and what is refused -------------------------------------------------------


def flat(evaluation: Evaluation) -> dict[str, float]:
    data = evaluation.to_json()
    numbers = {k: v for k, v in data.items() if isinstance(v, int | float)}
    numbers |= {f"{k}.{i}": x for k, ends in data["intervals"].items() for i, x in enumerate(ends)}
    return numbers | {f"ood.{k}": v for k, v in data["ood"]["foreign"].items()}


@pytest.mark.parametrize("which", ["trained", "trained_mle"])
def test_the_batch_size_does_not_matter(request, noisy_test, which) -> None:
    model: BayesModel = request.getfixturevalue(which)
    results = [
        flat(evaluate(model, noisy_test, ood={"foreign": foreign_texts(30)}, batch_size=size))
        for size in (1, 4, 50)
    ]
    for other in results[1:]:
        assert other == {k: pytest.approx(v, abs=1e-6) for k, v in results[0].items()}


def test_a_choice_task_is_evaluated_among_the_choices_there_are(make, choice) -> None:
    model = make(labels=choice)
    fit(model, choice, progress=silent, epochs=1)
    test = Task.from_rows(choice_rows(30, 9), like=choice)
    found = evaluate(
        model, test, ood={"two": Task.from_rows(choice_rows(10, 8, (2,)), like=choice)}
    )
    assert math.isfinite(found.nll) and 0 <= found.accuracy <= 1
    assert 0 <= found.ood["two"]["auroc_entropy"] < 0.5  # fewer choices, less entropy


def test_rows_without_a_label_are_named(trained, clear_test) -> None:
    rows = [{"text": e.text, "label": clear_test.labels[e.label]} for e in clear_test]
    del rows[7]["label"]
    gappy = Task.from_rows(rows, like=clear_test, require_labels=False)
    with pytest.raises(DataError, match="the row with id 8 has no label"):
        evaluate(trained, gappy)


def test_other_classes_are_refused(trained) -> None:
    two = Task.from_rows(topic_rows(20, topics=("login", "parcel")))
    with pytest.raises(DataError, match=r"with like=train"):
        evaluate(trained, two)


def test_nothing_to_evaluate_is_refused(trained, clear_test) -> None:
    with pytest.raises(DataError, match="The data: there are no rows to evaluate on"):
        evaluate(trained, clear_test.select([]))
    with pytest.raises(DataError, match="nothing: there are no rows to evaluate on"):
        evaluate(trained, clear_test, ood={"nothing": []})


def test_predictions_may_be_scored_again(evaluation) -> None:
    from bayestune.evaluation import score

    again = score(evaluation.prediction, evaluation.targets, evaluation.ood_predictions)
    assert again.to_json() == evaluation.to_json()
    perfect = Prediction(
        probs=torch.eye(3),
        entropy=torch.zeros(3),
        aleatoric=torch.zeros(3),
        epistemic=torch.zeros(3),
        ood_score=torch.zeros(3),
        names=("a", "b", "c"),
    )
    sure = score(perfect, torch.arange(3))
    assert (sure.accuracy, sure.nll, sure.ece, sure.brier, sure.aurc) == (1, 0, 0, 0, 0)
