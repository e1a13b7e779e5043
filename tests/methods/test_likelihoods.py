"""``head.kind=generative`` and ``head.kind=ordinal``: built, trained, finalised, refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_tasks import foreign_texts, level_rows, topic_rows

from bayestune.data import LabelSet, Task
from bayestune.errors import ConfigError
from bayestune.evaluation import evaluate
from bayestune.head import GaussianHead, GenerativeHead, LinearHead, OrdinalHead
from bayestune.model import BayesModel, build
from bayestune.posterior.ordinal import curvature as ordinal_curvature
from bayestune.progress import silent
from bayestune.store import load
from bayestune.training import fit

JOINT = {"kind": "generative", "joint": True}


def run(make, task: Task, head: dict[str, Any], method: str = "polar_vbll", **options: Any):
    model = make(method, labels=task, head=head, **options)
    return model, fit(model, task, progress=silent)


# generative ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generative(make, clear) -> BayesModel:
    return run(make, clear, {"kind": "generative"})[0]


@pytest.mark.parametrize(
    ("method", "head", "trained"),
    [
        ("polar_vbll", {}, GaussianHead),
        ("mle", {}, LinearHead),
        ("polar_vbll", {"joint": True}, GenerativeHead),
        ("mle", {"joint": True}, GenerativeHead),
    ],
)
def test_a_generative_head_is_delivered_whatever_was_trained(
    make, clear, clear_test, method, head, trained
) -> None:
    options = {"kl": 0.0 if method == "mle" else 1.0, "axes": 12, "temperature": "auto"}
    options |= {"refresh": "auto"} if head else {}  # without it a joint head stays as trained
    model = make(method, labels=clear, head={"kind": "generative", **head}, **options)
    assert type(model.head) is trained
    chosen = fit(model, clear, progress=silent).chosen
    assert type(model.head) is GenerativeHead
    assert model.head.means.shape == (3, 12)
    assert chosen["covariance"] == "exact" and chosen["nll"] < 0.2
    found = evaluate(model, clear_test)
    assert found.accuracy > 0.97 and found.nll < 0.15
    # It is the exact posterior of the features that are delivered.
    again = GenerativeHead(in_features=32, num_classes=3, axes=12)
    train = clear.split(0.1, 0)[0]
    again.start(model.features(train), torch.tensor(train.targets))
    again.fold_temperature(chosen["temperature"])
    torch.testing.assert_close(again.means, model.head.means, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.log_noise, model.head.log_noise, rtol=1e-3, atol=1e-3)


def test_its_score_is_the_negative_log_density(generative, clear_test) -> None:
    assert generative.density is None
    phi = generative.features(clear_test)
    with torch.no_grad():
        density = generative.head.log_density(phi)
    inside = generative.predict(clear_test)
    torch.testing.assert_close(inside.ood_score, -density.float())
    torch.testing.assert_close(inside.entropy, inside.aleatoric + inside.epistemic)
    outside = generative.predict(foreign_texts(60))
    assert outside.ood_score.median() > inside.ood_score.quantile(0.99)
    found = evaluate(generative, clear_test, ood={"foreign": foreign_texts(60)}).ood["foreign"]
    assert found["auroc_density"] > 0.95
    assert outside.epistemic.mean() > 2 * inside.epistemic.mean()


@pytest.mark.parametrize("kind", ["generative", "ordinal"])
def test_no_text_has_no_prediction(request, kind) -> None:
    prediction = request.getfixturevalue(kind).predict([])
    assert len(prediction) == 0 and prediction.epistemic.shape == (0,)


def test_joint_training_lowers_its_own_bound(make, clear) -> None:
    model, done = run(make, clear, JOINT, refresh="none", epochs=6)
    assert done.chosen["covariance"] == "trained"
    assert done.history[-1]["train_nll"] < 0.9 * done.history[0]["train_nll"]
    assert done.history[-1]["val_nll"] < 0.1
    raced = run(make, clear, JOINT, kl="auto", epochs=2)[1]
    assert set(raced.chosen["kl_tried"]) == {"1.0", "0.3", "0.1"}
    assert isinstance(model.head, GenerativeHead)


def test_class_shares_are_its_prior(make) -> None:
    rows = topic_rows(120)
    skewed = Task.from_rows([r for i, r in enumerate(rows) if r["label"] != "refund" or i % 4 == 0])
    plain = run(make, skewed, {"kind": "generative"})[0]
    balanced = run(make, skewed, {"kind": "generative"}, class_weights="balanced")[0]
    shares = torch.tensor(skewed.class_counts, dtype=torch.float) / len(skewed)
    torch.testing.assert_close(plain.head.log_class_prior.exp(), shares, rtol=0, atol=0.03)
    third = torch.full((3,), 1 / 3)
    torch.testing.assert_close(balanced.head.log_class_prior.exp(), third, rtol=0, atol=1e-5)


def test_absent_choices_have_probability_zero(make, choice) -> None:
    for head in ({"kind": "generative"}, JOINT):
        model, _ = run(make, choice, head, epochs=1)
        prediction = model.predict(choice)
        mask = model.mask(choice)
        assert mask is not None and not prediction.probs[~mask].any()


def test_a_refresh_of_another_kind_of_layer_is_refused(make, clear) -> None:
    with pytest.raises(ConfigError, match=r"refresh=block is the covariance of a linear layer"):
        run(make, clear, {"kind": "generative"}, epochs=1, refresh="block")


@pytest.mark.parametrize(
    "options", [{"temperature": "none", "kl": 1.0}, {"method": "mle", "temperature": 2.0}]
)
def test_nothing_is_held_out_where_nothing_is_chosen(make, clear, options) -> None:
    _, done = run(make, clear, {"kind": "generative"}, epochs=1, hold_out=0.0, **options)
    assert done.chosen["temperature"] == options["temperature"] or done.chosen["temperature"] == 1
    with pytest.raises(ConfigError, match="hold"):
        run(make, clear, {"kind": "generative"}, epochs=1, hold_out=0.0)


# ordinal ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ordinal(make, levels) -> BayesModel:
    return run(make, levels, {"kind": "ordinal"}, epochs=10)[0]


def test_it_learns_an_order(ordinal) -> None:
    test = Task.from_rows(level_rows(200, 7), like=ordinal.task)
    assert isinstance(ordinal.head, OrdinalHead) and ordinal.head.row.family == "dense"
    prediction = ordinal.predict(test)
    targets = torch.tensor(test.targets)
    found = evaluate(ordinal, test)
    assert found.accuracy > 0.8 and found.nll < 0.5
    # Where it errs it errs by one: what the second most probable class is, too.
    assert (prediction.indices - targets).abs().double().mean() < 0.25
    top = prediction.probs.topk(2).indices
    assert ((top[:, 0] - top[:, 1]).abs() == 1).double().mean() > 0.95
    torch.testing.assert_close(prediction.entropy, prediction.aleatoric + prediction.epistemic)


def test_it_is_less_sure_of_strangers(ordinal) -> None:
    test = Task.from_rows(level_rows(100, 7), like=ordinal.task)
    inside, outside = ordinal.predict(test), ordinal.predict(foreign_texts(60))
    assert outside.epistemic.mean() > 1.5 * inside.epistemic.mean()
    assert outside.ood_score.median() > 2 * inside.ood_score.median()


def test_epistemic_uncertainty_shrinks_with_more_rows(make) -> None:
    probe = Task.from_rows(level_rows(100, 7))
    amounts = []
    for count in (16, 64, 256):
        train = Task.from_rows(level_rows(count))
        options = {"refresh": "block", "precision": 1.0, "temperature": "none"}
        model = make(labels=train, head={"kind": "ordinal"}, **options)
        fit(model, train, progress=silent, epochs=max(2, 640 // count))
        amounts.append(float(model.predict(probe).epistemic.mean()))
    assert amounts[0] > 1.3 * amounts[1] > 1.3**2 * amounts[2] > 0


@pytest.mark.parametrize("refresh", ["diagonal", "eigen", "block"])
def test_its_refresh_is_the_inverse_of_its_curvature(make, levels, refresh) -> None:
    options = {"refresh": refresh, "precision": 3.0, "temperature": "none", "epochs": 1}
    model, done = run(make, levels, {"kind": "ordinal"}, hold_out=0.0, **options)
    head, phi = model.head, model.features(levels)
    curvature = ordinal_curvature(
        head.row(phi).squeeze(-1), torch.tensor(levels.targets), head.cuts
    ).detach()
    tau = 3.0 * float(torch.exp(-head.row.log_prior_variance))
    H = (phi.T * curvature) @ phi + tau * torch.eye(32)
    probe = model.features(foreign_texts(5))
    if refresh == "block":
        expected = torch.linalg.solve(H.double(), probe.T.double()).T @ probe.T.double()
        expected = expected.diagonal()
    elif refresh == "diagonal":
        expected = (probe.square() / H.diagonal()).sum(1).double()
    else:
        values, Q = torch.linalg.eigh(((phi.T * curvature) @ phi).double())
        expected = ((probe.double() @ Q).square() / (values + tau)).sum(1)
    var = head.moments(probe)[1].squeeze(1).double()
    torch.testing.assert_close(var, expected, rtol=2e-3, atol=1e-5)
    assert done.chosen["covariance"] == "refreshed"


def test_the_kl_weight_is_raced_too(make, levels) -> None:
    _, done = run(make, levels, {"kind": "ordinal"}, kl="auto", epochs=2)
    assert set(done.chosen["kl_tried"]) == {"1.0", "0.3", "0.1"}


def test_an_order_is_nobodys_guess(make, choice, llama_base) -> None:
    head = {"kind": "ordinal"}
    with pytest.raises(ConfigError, match="answer letters"):
        make(labels=choice, head=head)
    named = ["bad", "good", "great"]
    rows = [{"text": name, "label": name} for name in named]
    with pytest.raises(ConfigError, match=r"alphabetical order \(bad, good, great\)"):
        make(labels=Task.from_rows(rows), head=head)
    for labels in (
        Task.from_rows(rows, labels=named),
        LabelSet.from_names(named),
        Task.from_rows([{**row, "label": i} for i, row in enumerate(rows)]),
        ["low", "medium", "high"],
        ["no", "yes"],
    ):
        model = build(base=str(llama_base), labels=labels, head=head, layers="top:1", rank=2)
        assert isinstance(model.head, OrdinalHead)


def test_a_fitted_generative_model_is_not_trained_again(generative, clear) -> None:
    with pytest.raises(ConfigError, match="fitted already"):
        fit(generative, clear, progress=silent)


# without a prior ----------------------------------------------------------------------------------


def test_maximum_likelihood_orders_by_a_point(make, levels, tmp_path) -> None:
    model, done = run(make, levels, {"kind": "ordinal"}, "mle", kl=0.0, temperature="auto")
    head = model.head
    assert isinstance(head, OrdinalHead) and isinstance(head.row, LinearHead)
    assert done.chosen["covariance"] == "none" and done.chosen["temperature"] != 1
    assert done.chosen["kl"] == 0 and all(row["kl"] == 0 for row in done.history)
    test = Task.from_rows(level_rows(100, 7), like=model.task)
    assert evaluate(model, test).accuracy > 0.8
    prediction = model.predict(test)
    assert not prediction.epistemic.any()
    with torch.no_grad():
        torch.testing.assert_close(prediction.probs, head(model.features(test)).exp())
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.head.point and torch.equal(again.predict(test).probs, prediction.probs)


def test_a_point_gets_a_covariance_where_a_refresh_is_named(make, levels, tmp_path) -> None:
    options = {"kl": 0.0, "refresh": "block", "precision": 3.0, "hold_out": 0.0}
    model, done = run(make, levels, {"kind": "ordinal", "prior_scale": 2.0}, "mle", **options)
    point, _ = run(make, levels, {"kind": "ordinal"}, "mle", kl=0.0, hold_out=0.0)
    head, phi = model.head, model.features(levels)
    torch.testing.assert_close(head.weight, point.head.weight)
    assert not head.point and done.chosen["covariance"] == "refreshed"
    curvature = ordinal_curvature(
        head.row(phi).squeeze(-1), torch.tensor(levels.targets), head.cuts
    ).detach()
    tau = 3.0 / (2 * 2.0 * 3**2 / float(phi.double().square().sum(1).mean()))
    H = (phi.T * curvature) @ phi + tau * torch.eye(32)
    probe = model.features(foreign_texts(5))
    expected = torch.linalg.solve(H.double(), probe.T.double()).T @ probe.T.double()
    var = head.moments(probe)[1].squeeze(1).double()
    torch.testing.assert_close(var, expected.diagonal(), rtol=2e-3, atol=1e-5)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert not again.head.point
    torch.testing.assert_close(again.head.moments(probe)[1], head.moments(probe)[1])


@pytest.mark.parametrize(
    ("head", "built", "asked", "message"),
    [
        ({"kind": "ordinal"}, 1.0, {"kl": 0.0}, "kl is 0.0 and .* built without train.kl=0"),
        ({"kind": "ordinal"}, 0.0, {"kl": "auto"}, "kl is 'auto' and .* built with train.kl=0"),
        (JOINT, 0.0, {"refresh": "none"}, "take finalize.refresh=auto"),
    ],
)
def test_a_posterior_without_a_prior_is_not_trained(make, head, built, asked, message) -> None:
    task = Task.from_rows(level_rows(60))
    model = make(labels=task, head=head, kl=built)
    with pytest.raises(ConfigError, match=message):
        fit(model, task, progress=silent, **asked)
