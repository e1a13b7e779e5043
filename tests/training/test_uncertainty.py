"""Short real trainings show the uncertainty that the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from toy_tasks import foreign_texts, random_rows, topic_rows

from bayestune.data import Task
from bayestune.evaluation import Evaluation, evaluate
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit

TWO = ("login", "parcel")
#: The posterior as trained, and the Laplace one at the prior's own precision.
COVARIANCES: dict[str, dict[str, Any]] = {
    "trained": {"refresh": "none", "scale": 1.0},
    "refreshed": {"refresh": "block", "precision": 1.0},
}


def noisy(count: int, seed: int, wrong: float) -> Task:
    return Task.from_rows(topic_rows(count, seed, topics=TWO, wrong=wrong))


# a few wrongly labelled rows, many epochs --------------------------------------------------------


def test_the_posterior_overfits_less_than_the_point(make) -> None:
    """Both after 30 epochs on 48 rows, a quarter of whose labels are wrong."""
    train, test = noisy(48, 2, 0.25), noisy(200, 99, 0.25)
    measured: dict[str, Evaluation] = {}
    gap: dict[str, float] = {}
    for method in ("mle", "polar_vbll"):
        model = make(
            method,
            labels=train,
            targets="all-linear",
            **{"epochs": 30, "lr": 1e-2, "head_lr": 0.1, "temperature": "none"},
            **COVARIANCES["trained"],
        )
        fit(model, train, progress=silent)
        measured[method] = evaluate(model, test)
        gap[method] = measured[method].nll - evaluate(model, train).nll
    point, posterior = measured["mle"], measured["polar_vbll"]
    assert gap["mle"] > 0.5, "the recipe does not overfit"
    assert gap["polar_vbll"] < gap["mle"] / 2
    assert posterior.nll < point.nll - 0.2
    assert posterior.ece < point.ece - 0.05
    assert posterior.brier < point.brier


# epistemic uncertainty ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=sorted(COVARIANCES))
def grown(request, make) -> dict[int, BayesModel]:
    """The method trained as many steps on 12, 48 and 192 rows."""
    models: dict[int, BayesModel] = {}
    for count in (12, 48, 192):
        train = noisy(count, 0, 0.1)
        model = models[count] = make(labels=train, temperature="none", **COVARIANCES[request.param])
        fit(model, train, progress=silent, epochs=max(3, 400 // count))
    return models


def test_epistemic_uncertainty_shrinks_with_more_rows(grown) -> None:
    familiar = noisy(150, 98, 0.0)
    amounts = [float(model.predict(familiar).epistemic.mean()) for model in grown.values()]
    assert amounts[0] > 1.4 * amounts[1] > 1.4**2 * amounts[2] > 0
    assert amounts[2] < 0.4 * amounts[0]


def test_epistemic_uncertainty_is_higher_on_unfamiliar_texts(grown) -> None:
    model = grown[192]
    familiar = model.predict(noisy(192, 0, 0.1))
    unfamiliar = model.predict(foreign_texts(100))
    assert unfamiliar.epistemic.mean() > 1.2 * familiar.epistemic.mean()
    assert unfamiliar.ood_score.median() > 2 * familiar.ood_score.median()
    found = evaluate(model, noisy(150, 98, 0.0), ood={"foreign": foreign_texts(100)}).ood["foreign"]
    assert found["auroc_mutual_information"] > 0.55
    assert found["auroc_density"] > 0.9


# labels without a cause --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_random_labels_are_predicted_as_such(make, seed) -> None:
    train = Task.from_rows(random_rows(120, seed))
    model = make(labels=train)
    fit(model, train, progress=silent, epochs=8)
    prediction = model.predict(Task.from_rows(random_rows(150, 77)))
    share = prediction.entropy / math.log(2)
    assert float(share.mean()) > 0.96
    assert float((share > 0.9).double().mean()) > 0.9
    # What is left is noise of the labels and not ignorance of the weights.
    assert float(prediction.epistemic.mean()) < 0.15 * float(prediction.aleatoric.mean())
    assert bool(torch.isfinite(prediction.probs).all())
