"""Short real trainings on numbers show the uncertainty that the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from number_tasks import number_task
from toy_tasks import foreign_texts, number_rows, topic_rows

from bayestune.data import Task
from bayestune.evaluation import RegressionEvaluation, evaluate
from bayestune.head import GaussianHead, LinearHead
from bayestune.prediction import RegressionPrediction
from bayestune.progress import silent
from bayestune.training import fit


def check(evaluation: Any) -> RegressionEvaluation:
    assert isinstance(evaluation, RegressionEvaluation)
    return evaluation


# what it promises --------------------------------------------------------------------------------


def test_it_learns_the_number_and_its_noise(fitted_numbers, numbers_test) -> None:
    """The noise has a deviation of 10 hours; always answering the mean would be off by 40."""
    model, run, _ = fitted_numbers()
    found = check(evaluate(model, numbers_test, ood={"foreign": foreign_texts(80)}))
    assert found.n == 300
    assert 10 < found.rmse < 17
    assert 0.8 < found.coverage90 < 0.96
    assert found.nll < math.log(40 * math.sqrt(2 * math.pi * math.e)) - 0.5
    assert found.mae < found.rmse and found.crps < found.mae
    assert run.chosen["noise"]["kind"] == "gaussian"
    assert 8 < run.chosen["noise"]["std"] < 16
    assert found.ood["foreign"]["auroc_epistemic"] > 0.9
    assert found.ood["foreign"]["auroc_density"] > 0.9
    for name, value in found.scalars.items():
        low, high = found.intervals[name]
        assert low <= value <= high


def test_epistemic_deviation_is_larger_on_foreign_texts_and_falls_with_rows(
    fitted_numbers,
) -> None:
    model, _, _ = fitted_numbers()
    few, _, _ = fitted_numbers(task=number_task(60), epochs=24)
    familiar, foreign = number_task(90, 5), foreign_texts(80)
    own = model.predict(familiar)
    assert model.predict(foreign).epistemic.mean() > 3 * own.epistemic.mean()
    assert few.predict(familiar).epistemic.mean() > 1.3 * own.epistemic.mean()
    torch.testing.assert_close(
        own.std.square(), own.aleatoric.square() + own.epistemic.square(), rtol=1e-10, atol=0
    )


def test_a_point_has_no_epistemic_deviation(fitted_numbers, numbers) -> None:
    model, run, _ = fitted_numbers("mle")
    assert isinstance(model.head, LinearHead)
    prediction = model.predict(numbers)
    assert isinstance(prediction, RegressionPrediction)
    assert not bool(prediction.epistemic.any())
    # Maximum likelihood: the noise is the residual on the rows it was trained on.
    residual = prediction.mean - torch.tensor(numbers.values, dtype=torch.float64)
    torch.testing.assert_close(
        prediction.std[0], residual.square().mean().sqrt(), rtol=1e-4, atol=0
    )
    assert run.chosen["covariance"] == "none"


def test_a_point_can_be_refreshed(fitted_numbers, numbers_test) -> None:
    point, _, _ = fitted_numbers("mle")
    model, run, _ = fitted_numbers("mle", refresh="block", temperature="auto")
    assert isinstance(model.head, GaussianHead) and model.head.noise is not None
    assert bool((model.predict(numbers_test).epistemic > 0).all())
    assert check(evaluate(model, numbers_test)).nll < check(evaluate(point, numbers_test)).nll
    assert run.chosen["covariance"] == "refreshed"


def test_student_noise_withstands_outliers(fitted_numbers, numbers_test) -> None:
    task = number_task(240, outliers=0.05)
    gaussian, _, _ = fitted_numbers(task=task, noise="gaussian", seed=1)
    student, run, _ = fitted_numbers(task=task, noise="student", seed=1)
    found = check(evaluate(student, numbers_test))
    assert found.rmse < 0.8 * check(evaluate(gaussian, numbers_test)).rmse
    assert found.nll < check(evaluate(gaussian, numbers_test)).nll - 0.3
    dof = student.predict(numbers_test).dof
    assert bool((dof >= run.chosen["noise"]["dof"]).all()) and run.chosen["noise"]["dof"] < 6


def test_heteroscedastic_noise_tells_noisy_texts(make) -> None:
    """Numbers of parcels vary by 30 hours, those of logins by 3."""

    def rows(count: int, seed: int) -> Task:
        quiet, loud = (
            topic_rows(count, s, topics=[t]) for s, t in ((seed, "login"), (seed + 1, "parcel"))
        )
        generator = torch.Generator().manual_seed(seed)
        return Task.from_rows(
            [
                {"text": r["text"], "label": 50 + std * float(torch.randn((), generator=generator))}
                for pair in zip(quiet, loud, strict=True)
                for r, std in zip(pair, (3, 30), strict=True)
            ],
            kind="regression",
        )

    model = make(labels=rows(120, 0), noise="heteroscedastic", epochs=12)
    fit(model, rows(120, 0), progress=silent)
    aleatoric = model.predict(rows(40, 7)).aleatoric
    quiet, loud = float(aleatoric[::2].mean()), float(aleatoric[1::2].mean())
    assert 2 < quiet < 9 and 18 < loud < 45
    found = check(evaluate(model, rows(100, 8)))
    assert 0.8 < found.coverage90 < 0.97


# units -------------------------------------------------------------------------------------------


def test_another_unit_is_the_same_run(make, numbers_test) -> None:
    """In seconds everything scales; the NLL moves by log 3600, priors and rates do not know."""
    found = {}
    for unit in (1.0, 3600.0):
        rows = [{**r, "label": unit * r["label"] + 1e4 * (unit - 1)} for r in number_rows(90)]
        model = make(labels=(task := Task.from_rows(rows, kind="regression")))
        run = fit(model, task, progress=silent)
        found[unit] = model.predict(numbers_test), run
    (hours, first), (seconds, second) = found.values()
    torch.testing.assert_close((seconds.mean - 1e4 * 3599) / 3600, hours.mean, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(seconds.std / 3600, hours.std, rtol=1e-3, atol=0)
    torch.testing.assert_close(seconds.ood_score, hours.ood_score, rtol=1e-2, atol=1e-2)
    for a, b in zip(first.history, second.history, strict=True):
        assert b["train_nll"] == pytest.approx(a["train_nll"] + math.log(3600), abs=1e-2)
        assert b["val_nll"] == pytest.approx(a["val_nll"] + math.log(3600), abs=1e-2)
        assert b["val_rmse"] == pytest.approx(3600 * a["val_rmse"], rel=1e-2)
    assert second.chosen["nll"] == pytest.approx(first.chosen["nll"] + math.log(3600), abs=1e-2)
    assert second.chosen["noise"]["std"] == pytest.approx(3600 * first.chosen["noise"]["std"], 1e-2)


def test_every_row_counts_whatever_the_batch(fitted_numbers, numbers_test) -> None:
    model, _, _ = fitted_numbers()
    scores = [check(evaluate(model, numbers_test, batch_size=size)).scalars for size in (1, 7, 64)]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], rel=1e-4)


def test_rows_of_a_prediction(fitted_numbers) -> None:
    model, _, _ = fitted_numbers()
    (row,) = model.predict(["find my parcel"]).rows(["a"])
    assert list(row) == ["id", "mean", "std", "aleatoric", "epistemic", "ood_score"]
    assert row["std"] ** 2 == pytest.approx(row["aleatoric"] ** 2 + row["epistemic"] ** 2)
    assert len(list(model.predict([]).rows([]))) == 0
