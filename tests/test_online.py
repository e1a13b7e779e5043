"""bt.update on trained models: what it learns, keeps, refuses and records."""

from __future__ import annotations

import copy

import pytest
import torch
from number_tasks import number_task
from toy_tasks import TOPICS, level_rows, topic_rows

import bayestune as bt
from bayestune import online
from bayestune.data import Task
from bayestune.errors import ConfigError, DataError
from bayestune.finalize import Features
from bayestune.progress import silent
from bayestune.training import fit

#: Words of the topics that no training row has.
WORDS = {"login": ("otter", "ferret"), "parcel": ("crane", "heron"), "refund": ("maple", "oak")}


def reworded(count: int, seed: int, like: Task) -> Task:
    """Rows of which half are of one class and every second has a new word for the old one."""
    rows = topic_rows(count, seed, topics=("login", "login", "parcel", "refund"))
    for row in rows[::2]:
        old = next(w for w in row["text"].split() if w in TOPICS[row["label"]])
        words = WORDS[row["label"]]
        row["text"] = row["text"].replace(old, words[TOPICS[row["label"]].index(old) % 2])
    return Task.from_rows(rows, like=like)


@pytest.fixture(scope="module")
def new(clear) -> Task:
    return reworded(60, 5, clear)


@pytest.fixture(scope="module")
def new_test(clear) -> Task:
    return reworded(150, 6, clear)


def updatable(model):
    """A copy that a test may change."""
    found = copy.copy(model)
    found.set_head(copy.deepcopy(model.head))
    return found


@pytest.fixture
def model(trained):
    head = trained.head
    yield updatable(trained)
    trained.set_head(head)


def nll(model, task: Task) -> float:
    probs = model.predict(task).probs.double()
    return float(-probs[torch.arange(len(task)), torch.tensor(task.targets)].log().mean())


def accuracy(model, task: Task) -> float:
    return float((model.predict(task).indices == torch.tensor(task.targets)).float().mean())


def test_new_words_are_learnt_and_old_ones_stay(model, new, new_test, clear_test):
    before = [nll(model, task) for task in (new_test, clear_test)]
    right, score = accuracy(model, clear_test), model.predict(new_test).ood_score.median()
    adapter = {k: v.clone() for k, v in model.backbone.peft_model.state_dict().items()}
    known = model.predict(clear_test).epistemic.mean()
    found = bt.update(model, new)
    after = [nll(model, task) for task in (new_test, clear_test)]
    assert after[0] < before[0] - 0.3
    assert after[1] < before[1] + 0.15
    assert accuracy(model, clear_test) > right - 0.04
    assert found.rows == 60 and found.density and not found.guarantees_dropped
    assert found.nll_before == pytest.approx(before[0], abs=0.6)
    assert found.nll_after < found.nll_before
    # New words are not strange any more, and nothing but the last layer has moved.
    assert model.predict(new_test).ood_score.median() < 0.5 * score
    assert model.predict(clear_test).epistemic.mean() < 1.2 * known
    for name, tensor in model.backbone.peft_model.state_dict().items():
        assert "score" in name or torch.equal(tensor, adapter[name]), name


def test_the_record_says_what_was_learnt_and_when(model, new):
    bt.update(model, new)
    bt.update(model, new, again=True)
    first, second = model.notes["updates"]
    assert first["hash"] == second["hash"] == new.hash
    assert first["rows"] == 60 and first["bayestune"] == bt.__version__
    assert first["when"] <= second["when"] and first["nll_after"] > second["nll_after"]


def test_rows_that_it_knows_are_refused(model, clear, new, trained):
    with pytest.raises(DataError, match="learnt from already"):
        bt.update(model, clear)
    bt.update(model, new)
    weight = model.head.weight.clone()
    with pytest.raises(DataError, match="learnt from already"):
        bt.update(model, new)
    assert torch.equal(model.head.weight, weight)
    with pytest.raises(DataError, match="or updated with"):
        bt.calibrate(model, new, coverage=0.9)
    assert "updates" not in trained.notes  # the fixture is as it was


def test_blocks_bound_the_memory_and_say_nearly_the_same(model, new, new_test, monkeypatch):
    start = updatable(model)
    bt.update(model, new)
    whole = model.predict(new_test).probs
    monkeypatch.setattr(online, "BLOCK", 16)
    bt.update(start, new)
    assert (start.predict(new_test).probs - whole).abs().sum(1).mean() / 2 < 0.05
    for name in ("means", "counts", "present"):
        torch.testing.assert_close(getattr(start.density, name), getattr(model.density, name))


def test_guarantees_do_not_survive(model, new, clear_test):
    bt.calibrate(model, clear_test, coverage=0.9)
    assert bt.update(model, new).guarantees_dropped
    assert model.guarantees is None and model.predict(["my parcel"]).sets is None


def test_what_cannot_be_learnt_is_refused(model, trained_mle, make, new, clear):
    weight = model.head.weight.clone()
    with pytest.raises(DataError, match="Unknown label"):
        Task.from_rows([{"text": "x", "label": "weather"}], like=model.task)
    other = Task.from_rows([{"text": "x", "label": "a"}, {"text": "y", "label": "b"}])
    with pytest.raises(DataError, match="has the classes"):
        bt.update(model, other)
    with pytest.raises(DataError, match="no rows"):
        bt.update(model, new.select([]))
    unlabelled = Task.from_texts(["my parcel"], like=clear)
    with pytest.raises(DataError, match="no label"):
        bt.update(model, unlabelled)
    assert torch.equal(model.head.weight, weight) and "updates" not in model.notes
    with pytest.raises(ConfigError, match="--method last_layer_laplace --from RUN"):
        bt.update(trained_mle, new)
    with pytest.raises(ConfigError, match="not trained"):
        bt.update(make(), new)
    with pytest.raises(ConfigError, match="random in the weights of its adapter"):
        bt.update(make("blob"), new)


def test_a_model_of_an_earlier_version_keeps_its_density(model, new, new_test):
    model.density = type(model.density)(*(
        getattr(model.density, name) for name in ("means", "whitening", "present")
    ))  # fmt: skip
    score = model.predict(new_test).ood_score
    assert not bt.update(model, new).density
    torch.testing.assert_close(model.predict(new_test).ood_score, score)


def quick(make, task, method: str = "polar_vbll", **options):
    model = make(method, labels=task, **options)
    fit(model, task, progress=silent)
    return model


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora_vbll", {"head": {"covariance": "kronecker"}, "finalize": {"refresh": "none"}}),
        ("last_layer_laplace", {}),
        ("polar_vbll", {"head": {"kind": "generative"}}),
        ("polar_vbll", {"finalize": {"refit": "ascent"}}),
    ],
)
def test_other_posteriors_learn_too(make, clear, new, new_test, clear_test, method, options):
    model = quick(make, clear, method, **options)
    before, right = nll(model, new_test), accuracy(model, clear_test)
    found = bt.update(model, new)
    assert nll(model, new_test) < before - 0.05
    # A class stays one Gaussian, here as in a refit, and its mean has moved.
    generative = options.get("head") == {"kind": "generative"}
    assert accuracy(model, clear_test) > right - (0.2 if generative else 0.1)
    assert found.density


def test_a_diagonal_covariance_is_warned_of(make, clear, new, caplog):
    model = quick(make, clear, finalize={"refresh": "none"})
    bt.update(model, new)
    assert "each weight by itself" in caplog.text


def test_ordered_classes_and_numbers_learn(make, levels):
    model = quick(make, levels, head={"kind": "ordinal"})
    new = Task.from_rows(level_rows(80, 7), like=model.task)
    found = bt.update(model, new)
    assert found.nll_after < found.nll_before

    numbers = number_task(120)
    model = quick(make, numbers, epochs=6)
    shifted = number_task(60, 3)
    before = model.predict(shifted)
    found = bt.update(model, shifted)
    after = model.predict(shifted)
    truth = torch.tensor(shifted.values)
    assert found.nll_after < found.nll_before
    assert (after.mean - truth).square().mean() < (before.mean - truth).square().mean()
    assert after.epistemic.mean() < before.epistemic.mean()
    assert found.density and int(model.density.counts.sum()) == 60 + 108


def test_class_weights_of_the_training_count_for_new_rows(make, clear, new, monkeypatch):
    model = quick(make, clear, train={"class_weights": "login=3"})
    per_class = model.notes["data"]["class_weights"]
    assert per_class[0] == pytest.approx(3 * per_class[1])
    seen: list[Features] = []
    monkeypatch.setattr(online, "update_head", lambda head, rows, how: seen.append(rows))
    bt.update(model, new)
    expected = torch.tensor(per_class)[torch.tensor(new.targets)]
    torch.testing.assert_close(seen[0].weights, expected)
    del model.notes["data"]["class_weights"]
    with pytest.raises(ConfigError, match="earlier version"):
        bt.update(model, new, again=True)
