"""Calibrating models of every kind in Python, keeping and dropping what was found."""

from __future__ import annotations

import pytest
import torch
from toy_tasks import choice_rows, level_rows, topic_rows

import bayestune as bt
from bayestune.data import Task
from bayestune.errors import ConfigError, DataError
from bayestune.guarantees import SetRule
from bayestune.progress import silent
from bayestune.training import fit

TEXTS = ["find my parcel", "login", "why was that", "how can you refund this charge again please"]


@pytest.fixture
def fresh(clear) -> Task:
    return Task.from_rows(topic_rows(200, 300, wrong=0.1), like=clear)


def test_save_keeps_and_training_drops_what_was_found(make, clear, fresh, tmp_path) -> None:
    model = make("mle", kl=0.0)
    fit(model, clear, progress=silent)
    assert model.predict(TEXTS).sets is None and model.predict(TEXTS).abstain is None
    found = bt.calibrate(model, fresh, coverage=0.9, max_risk=0.3)
    assert model.guarantees is found and found.data == fresh.hash
    model.save(tmp_path / "model")
    loaded = bt.load(tmp_path / "model")
    assert loaded.guarantees == found
    a, b = model.predict(TEXTS), loaded.predict(TEXTS)
    assert torch.equal(a.members, b.members) and torch.equal(a.abstain, b.abstain)
    assert a.sets == [[a.names[k] for k in row] for row in by_probability(a)]
    loaded.save(tmp_path / "model")  # in its own place
    assert bt.load(tmp_path / "model").guarantees == found
    fit(loaded, clear, epochs=1, progress=silent)
    assert loaded.guarantees is None
    loaded.save(tmp_path / "model")
    assert not (tmp_path / "model" / "guarantees.json").exists()
    assert bt.load(tmp_path / "model").guarantees is None


def by_probability(prediction) -> list[list[int]]:
    return [
        sorted(row.nonzero()[:, 0].tolist(), key=lambda k: -probs[k])
        for row, probs in zip(prediction.members, prediction.probs.tolist(), strict=True)
    ]


def test_a_failed_calibration_leaves_the_one_before(trained_copy, clear, fresh) -> None:
    found = bt.calibrate(trained_copy, fresh, coverage=0.9)
    with pytest.raises(DataError, match="trained on or chosen by"):
        bt.calibrate(trained_copy, clear, coverage=0.8)
    with pytest.raises(ConfigError, match="nothing to guarantee"):
        bt.calibrate(trained_copy, fresh)
    assert trained_copy.guarantees is found


@pytest.fixture
def trained_copy(trained, tmp_path):
    """The trained model, which others use too, from its folder."""
    trained.save(tmp_path / "copy")
    return bt.load(tmp_path / "copy")


def test_choices_that_a_row_does_not_have_are_in_no_set(make, choice) -> None:
    model = make(labels=choice, refresh="none", epochs=1)
    fit(model, choice, progress=silent)
    rows = Task.from_rows(choice_rows(60, 5), like=choice)
    counts = torch.tensor(rows.choice_counts)
    for kind in ("lac", "aps", "raps"):
        bt.calibrate(model, rows, coverage=0.95, max_risk=0.5, sets=kind)
        # As if every class had to be let in.
        everything = SetRule(kind, 0.95, float("inf"), 60, 4.0, model.guarantees.sets.options)
        object.__setattr__(model.guarantees, "sets", everything)
        assert model.predict(rows).members.sum(1).tolist() == counts.tolist()


@pytest.mark.parametrize("kind", ["ordinal", "generative"])
def test_other_likelihoods(make, levels, kind) -> None:
    options = {"head": {"kind": kind}}
    model = make(labels=levels, refresh="none" if kind == "generative" else "block", **options)
    fit(model, levels, progress=silent)
    rows = Task.from_rows(level_rows(150, 7), like=levels)
    bt.calibrate(model, rows, coverage=0.8, max_risk=0.7, by="density")
    found = bt.evaluate(model, Task.from_rows(level_rows(400, 8), like=levels))
    assert found.kept["set_coverage"] > 0.68  # four deviations of Beta(121, 30) and of 400 rows
    assert 0 <= found.kept["accepted"] <= 1


def test_draws_of_adapter_weights(make, clear, fresh) -> None:
    model = make("mc_dropout", epochs=1)
    fit(model, clear, progress=silent)
    found = bt.calibrate(model, fresh, coverage=0.9, max_risk=0.9, by="mutual_information")
    assert found.settings["samples"] == model.recipe.predict.samples
    prediction = model.predict(fresh)
    assert len(prediction.sets) == 200
    inside = prediction.members.gather(1, torch.tensor(fresh.targets)[:, None])
    assert inside.sum() >= 181  # ⌈201 · 0.9⌉ of the calibration rows themselves


def test_nothing_predicts_nothing(trained_copy, fresh) -> None:
    bt.calibrate(trained_copy, fresh, coverage=0.9, max_risk=0.5)
    prediction = trained_copy.predict([])
    assert prediction.sets == [] and prediction.abstain.shape == (0,)
    assert list(prediction.rows([])) == []
