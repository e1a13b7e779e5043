"""``laplace_lora`` and ``polar_laplace``: trained, settled, predicted with, stored, refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_tasks import choice_rows, foreign_texts, topic_rows

from bayestune.config import PredictConfig
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.finalize import observed_at
from bayestune.methods import get
from bayestune.methods.contract import Parts
from bayestune.methods.laplace_lora import FACTORS
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.store import load
from bayestune.training import fit
from bayestune.training.rows import prepare

#: Labels that are not all right, so that certainty is not all there is to learn.
NOISY = Task.from_rows(topic_rows(120, wrong=0.1))
FAMILIAR = [row["text"] for row in topic_rows(60, 7)]
FOREIGN = foreign_texts(60)


def run(make, method: str = "laplace_lora", task: Task = NOISY, **options: Any):
    model = make(method, labels=task, kl=0.0, **options)
    return model, fit(model, task, progress=silent)


@pytest.fixture(scope="module")
def lora(make) -> BayesModel:
    return run(make)[0]


@pytest.fixture(scope="module")
def polar(make) -> BayesModel:
    return run(make, "polar_laplace")[0]


@pytest.fixture(params=["lora", "polar"])
def trained(request) -> BayesModel:
    return request.getfixturevalue(request.param)


def settled_again(model: BayesModel, rows: Task = NOISY, **weights: Any) -> dict[str, Any]:
    """Settle a trained model once more, at its weights as they are now."""
    recipe = replace(model.recipe, weights={**model.recipe.weights, **weights})
    settle, held_out = get("laplace_lora").settle, prepare(model, rows)
    assert settle is not None
    parts = Parts(model.backbone, model.head)
    return settle(parts, model.reader(), prepare(model, rows), held_out, recipe)


def covariance(model: BayesModel, texts=FAMILIAR, batch_size: int = 32):
    return model.observe(texts, batch_size).covariance


# what it promises ---------------------------------------------------------------------------------


def test_uncertainty_grows_away_from_the_data(trained) -> None:
    familiar, foreign = trained.predict(FAMILIAR), trained.predict(FOREIGN)
    assert foreign.epistemic.mean() > 1.5 * familiar.epistemic.mean() > 1e-3
    spread = [covariance(trained, t).diagonal(dim1=1, dim2=2).mean() for t in (FAMILIAR, FOREIGN)]
    assert spread[1] > 1.5 * spread[0]
    right = [row["label"] for row in topic_rows(60, 7)]
    assert sum(a == b for a, b in zip(familiar.labels, right, strict=True)) > 50


def test_samples_zero_is_the_mean_and_the_predictive_is_the_recipes(trained) -> None:
    full = trained.predict(FAMILIAR)
    observed = trained.observe(FAMILIAR)
    recipe = trained.recipe
    try:
        trained.recipe = replace(recipe, predict=PredictConfig(samples=0))
        mean = trained.predict(FAMILIAR)
        trained.recipe = replace(recipe, predict=PredictConfig("probit"))
        probit = trained.predict(FAMILIAR)
    finally:
        trained.recipe = recipe
    assert not mean.epistemic.any()
    torch.testing.assert_close(mean.probs, observed.mean.softmax(-1), rtol=1e-5, atol=1e-6)
    assert (mean.probs - full.probs).abs().max() > 1e-3
    direct = observed_at(observed, 1.0, None, PredictConfig("probit"))
    torch.testing.assert_close(probit.probs, direct.probs)
    # Averaging over the posterior takes certainty away.
    assert full.entropy.mean() > mean.entropy.mean()


def test_a_text_says_the_same_in_every_batch(trained) -> None:
    whole = trained.predict(FAMILIAR)
    for size in (1, 7):
        found = trained.predict(FAMILIAR, batch_size=size)
        torch.testing.assert_close(found.probs, whole.probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.epistemic, whole.epistemic, rtol=0, atol=1e-5)


def test_it_predicts_where_gradients_are_forbidden(trained) -> None:
    expected = trained.predict(FOREIGN).probs
    with torch.inference_mode():
        assert torch.equal(trained.predict(FOREIGN).probs, expected)


def test_it_is_stored_with_the_model(trained, tmp_path) -> None:
    trained.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.predict(FOREIGN).probs, trained.predict(FOREIGN).probs)
    assert torch.equal(covariance(again), covariance(trained))


def test_encoders(make, bert_base) -> None:
    for method in ("laplace_lora", "polar_laplace"):
        model, _ = run(make, method, base=str(bert_base))
        found = model.predict(FAMILIAR)
        assert (found.epistemic > 0).all() and torch.isfinite(found.probs).all()


def test_a_half_precision_backbone_keeps_factors_and_covariance_in_full(make) -> None:
    for method in ("laplace_lora", "polar_laplace"):
        model, _ = run(make, method, dtype="bfloat16", epochs=2)
        assert model.backbone.dtype == torch.bfloat16
        tensors = model.backbone.weights.tensors()
        assert {t.dtype for t in tensors.values()} == {torch.float32}
        V = covariance(model)
        assert V.dtype == torch.float32 and (V.diagonal(dim1=1, dim2=2) > 0).all()
        model.predict(FAMILIAR)


def test_absent_choices(make) -> None:
    task = Task.from_rows(choice_rows(48))
    model, _ = run(make, task=task, epochs=2)
    found = model.predict(task)
    absent = model.mask(task).logical_not()
    assert absent.any() and not found.probs[absent].any()
    assert (found.epistemic > 0).any()


# gauge --------------------------------------------------------------------------------------------


def test_balancing_changes_no_prediction_and_every_gauge_gives_the_same(make) -> None:
    model, _ = run(make)
    before, found = settled_again(model), covariance(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, site in model.backbone.weights.sites.items():
            if name.endswith(".A"):
                B = model.backbone.weights.sites[f"{name[:-2]}.B"].weight
                R = torch.randn(len(site.weight), len(site.weight), generator=random)
                R += 2 * torch.eye(len(R))
                site.weight.copy_(R @ site.weight)
                B.copy_(B @ torch.linalg.inv(R))
    mean = model.observe(FAMILIAR).mean
    bare = covariance(model)
    after = settled_again(model)
    torch.testing.assert_close(model.observe(FAMILIAR).mean, mean, rtol=0, atol=1e-4)
    # A factor of one in a thousand: float32 weights went through a random R and back.
    torch.testing.assert_close(covariance(model), found, rtol=1e-3, atol=1e-3 * found.abs().max())
    assert after["log_evidence"] == pytest.approx(before["log_evidence"], abs=0.01)
    assert (bare - found).norm() > 0.1 * found.norm(), "the gauge would have mattered"


def test_rotations_of_polars_frames_change_nothing(make) -> None:
    model, _ = run(make, "polar_laplace")
    before, found = settled_again(model), covariance(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for site in model.backbone.weights.sites.values():
            X, Y = site.layer.polar_X["default"], site.layer.polar_Y["default"]
            P, Q = (torch.linalg.qr(torch.randn(4, 4, generator=random)).Q for _ in range(2))
            X.copy_(X @ P)
            Y.copy_(Y @ Q)
            site.weight.copy_(P.T @ site.weight @ Q)
    after = settled_again(model)
    torch.testing.assert_close(covariance(model), found, rtol=1e-3, atol=1e-3 * found.abs().max())
    assert after["precision"]["adapter"] == pytest.approx(before["precision"]["adapter"], rel=1e-3)


# the prior's precision ----------------------------------------------------------------------------


def test_what_is_chosen_is_reported_and_the_evidence_is_largest_there(make) -> None:
    model, done = run(make, weights={"precision": "evidence"})
    chosen = done.chosen["weights"]
    assert set(chosen) == {"precision", "log_evidence"}
    best = chosen["precision"]["adapter"]
    for wrong in (0.3, 3.0):
        other = settled_again(model, precision=wrong * best)
        assert other["precision"] == {"adapter": pytest.approx(wrong * best)}
        assert other["log_evidence"] < chosen["log_evidence"]


def test_a_larger_precision_is_less_variance(make) -> None:
    model, _ = run(make)
    spread = []
    for precision in (1.0, 10.0, 1e6):
        settled_again(model, precision=precision)
        spread.append(float(covariance(model).diagonal(dim1=1, dim2=2).mean()))
    assert spread[0] > spread[1] > spread[2] < 1e-3


def test_layers_and_the_head_have_precisions_of_their_own(make) -> None:
    model, done = run(make, weights={"groups": "layer", "head": True})
    found = done.chosen["weights"]["precision"]
    layers = {name.rpartition(".")[0] for name in model.backbone.weights.sites} - {""}
    assert set(found) == layers | {"head"} and len(layers) == 4
    assert len(set(found.values())) == 5
    shared = run(make, weights={"head": True})[1].chosen["weights"]
    assert set(shared["precision"]) == {"adapter", "head"}
    # More of a prior to fit gives more evidence.
    assert done.chosen["weights"]["log_evidence"] > shared["log_evidence"]


def test_held_out_rows_choose_a_factor_on_the_evidences(make, clear_test) -> None:
    model = make("laplace_lora", labels=NOISY, kl=0.0, weights={"precision": "held_out"})
    done = fit(model, NOISY, progress=silent)  # a slice of the training rows is held out
    chosen = done.chosen["weights"]
    assert len(chosen["tried"]) == len(FACTORS) and chosen["factor"] in FACTORS
    assert len(set(chosen["tried"].values())) == len(FACTORS)
    model.recipe = replace(model.recipe, predict=PredictConfig(samples=0))
    assert settled_again(model, precision="held_out")["factor"] in FACTORS
    model.recipe = replace(model.recipe, predict=PredictConfig())
    # Where the mean is sure of what it gets wrong, held-out rows ask for more variance.
    wrong = Task.from_rows(topic_rows(300, 5, wrong=0.6), like=NOISY)
    assert settled_again(model, wrong, precision="held_out")["factor"] < 1
    with pytest.raises(ConfigError, match=r"weights\.precision=held_out"):
        fit(
            make("laplace_lora", labels=NOISY, kl=0.0, weights={"precision": "held_out"}),
            NOISY,
            progress=silent,
            hold_out=0.0,
        )


def test_a_temperature_is_fitted_on_what_is_delivered(make, tmp_path) -> None:
    model, done = run(make, temperature="auto", weights={"head": True})
    plain, _ = run(make, hold_out=0.1, patience=9, weights={"head": True})
    T = done.chosen["temperature"]
    assert T != 1
    a, b = model.observe(FAMILIAR), plain.observe(FAMILIAR)
    torch.testing.assert_close(a.mean * T, b.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.covariance * T**2, b.covariance, rtol=1e-3, atol=1e-3)
    model.save(tmp_path / "model")
    assert torch.equal(covariance(load(tmp_path / "model")), a.covariance)


# refused ------------------------------------------------------------------------------------------


def test_what_it_does_not_have_is_refused(make) -> None:
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": 2.5}]
    numbers = Task.from_rows(rows, kind="regression")
    with pytest.raises(ConfigError, match="polar_vbll"):
        make("laplace_lora", labels=numbers)
    with pytest.raises(ConfigError, match=r"head\.kind=linear"):
        make("laplace_lora", head={"kind": "gaussian"})
    with pytest.raises(ConfigError, match=r"refresh=none"):
        make("polar_laplace", refresh="block")
    for key, value in (("precision", 0.0), ("columns", 0), ("groups", "class")):
        with pytest.raises(ConfigError, match=rf"weights\.{key}"):
            make("laplace_lora", weights={key: value})
