"""``bayestune calibrate``: what it says, what it stores, and what predict and eval make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_checks import complaint, files_under, read_lines, write_rows
from toy_tasks import topic_rows

import bayestune
from bayestune.guarantees import selective, uniforms
from bayestune.prediction import SCORES

BOTH = ("--coverage", 0.9, "--max-risk", 0.2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Labelled rows that no run has seen."""
    return write_rows(tmp_path_factory.mktemp("cal") / "cal.jsonl", topic_rows(240, 11))


@pytest.fixture(scope="module")
def learnt(train_arguments, tmp_path_factory) -> Path:
    """A run that is right more often than not."""
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    out = tmp_path_factory.mktemp("learnt") / "run"
    result = CliRunner().invoke(app, [*train_arguments, "epochs=20", "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def run(learnt, tmp_path) -> Path:
    """A copy of it that a test may calibrate."""
    return Path(shutil.copytree(learnt, tmp_path / "run"))


def test_rules_are_stored_and_applied(cli, run, rows, files) -> None:
    before = files_under(run)
    plain = read_lines(cli("predict", run, files["test"]).stdout)
    result = cli("calibrate", run, "--data", rows, *BOTH)
    assert "240 calibration rows" in result.stdout
    assert f"saved in {run / 'model' / 'guarantees.json'}" in result.stdout
    after = files_under(run)
    assert after.keys() - before.keys() == {"model/guarantees.json"}
    card = "model/README.md"
    assert b"they hold the true class" in after.pop(card) and before.pop(card)
    assert {name: after[name] for name in before} == before  # the model is as it was
    assert len(after["model/guarantees.json"]) < 4000

    found = read_lines(cli("predict", run, files["test"]).stdout)
    model = bayestune.load(run)
    rule = model.guarantees.sets
    for old, new in zip(plain, found, strict=True):
        assert list(new) == [*old, "set", "abstain"]
        assert {key: new[key] for key in old} == old
        # Least ambiguous sets by hand, most probable first.
        order = sorted(new["probs"], key=new["probs"].__getitem__, reverse=True)
        limit = 1 - rule.threshold
        assert (
            new["set"] == [k for k in order if new["probs"][k] >= limit] or new["set"] == order[:1]
        )
        assert new["abstain"] is not (new["confidence"] > -model.guarantees.abstain.threshold)
    assert {row["abstain"] for row in found} == {True, False}
    assert len({len(row["set"]) for row in found}) > 1

    texts = [row["text"] for row in read_lines(files["test"].read_text())]
    prediction = model.predict(texts)
    assert prediction.sets == [row["set"] for row in found]
    assert prediction.abstain.tolist() == [row["abstain"] for row in found]


def test_what_is_said_and_json_agree_with_the_rows(cli, run, rows) -> None:
    result = cli("calibrate", run, "--data", rows, *BOTH, "--json")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    prediction = bayestune.load(run).predict([r["text"] for r in read_lines(rows.read_text())])
    truth = [row["label"] for row in read_lines(rows.read_text())]
    i = found["abstain"]["chosen"]
    accepted, errors = found["abstain"]["accepted"][i], found["abstain"]["errors"][i]
    answered = [
        label == right
        for label, right, abstain in zip(
            prediction.labels, truth, prediction.abstain.tolist(), strict=True
        )
        if not abstain
    ]
    assert (len(answered), answered.count(False)) == (accepted, errors)
    assert found["sets"]["size"] == pytest.approx(sum(map(len, prediction.sets)) / 240)
    # The k-th smallest score: k - 1 rows are below it or, at most, equal.
    covered = sum(y in s for y, s in zip(truth, prediction.sets, strict=True))
    assert covered >= 217  # ⌈241 · 0.9⌉
    text = cli("calibrate", run, "--data", rows, *BOTH).stdout
    assert f"{accepted} of 240 ({accepted / 240:.1%}) answered, {errors} of them wrong" in text
    assert "is at most 0.2 with confidence 0.95" in text
    assert f"lac, score at most {found['sets']['threshold']:.4g}" in text


def test_eval_measures_what_was_promised(cli, run, rows, files) -> None:
    arguments = ("eval", run, "--data", files["test"], "--json")
    plain = json.loads(cli(*arguments).stdout)
    cli("calibrate", run, "--data", rows, *BOTH)
    found = json.loads(cli(*arguments).stdout)
    added = ["set_coverage", "set_size", "accepted", "selective_risk"]
    assert [key for key in found if key not in plain] == added
    assert {key: found[key] for key in plain if key != "intervals"} == {
        key: value for key, value in plain.items() if key != "intervals"
    }
    truth = [row["label"] for row in read_lines(files["test"].read_text())]
    predicted = read_lines(cli("predict", run, files["test"]).stdout)
    inside = [y in row["set"] for y, row in zip(truth, predicted, strict=True)]
    wrong = [
        row["label"] != y for y, row in zip(truth, predicted, strict=True) if not row["abstain"]
    ]
    expected = {
        "set_coverage": sum(inside) / 60,
        "set_size": sum(len(row["set"]) for row in predicted) / 60,
        "accepted": len(wrong) / 60,
        "selective_risk": sum(wrong) / len(wrong),
    }
    assert {key: found[key] for key in added} == pytest.approx(expected)
    for key in added:
        low, high = found["intervals"][key]
        assert low <= found[key] <= high
    assert "selective_risk" in cli("eval", run, "--data", files["test"]).stdout
    said = "calibrated this run"
    assert said in cli("eval", run, "--data", rows).stderr
    assert said not in cli("eval", run, "--data", files["test"]).stderr


@pytest.mark.parametrize("sets", ["lac", "aps", "raps"])
@pytest.mark.parametrize("by", ["entropy", "mutual_information", "density"])
def test_every_kind_and_score(cli, run, rows, files, sets, by) -> None:
    cli("calibrate", run, "--data", rows, *BOTH, "--sets", sets, "--by", by)
    stored = bayestune.load(run).guarantees
    assert (stored.sets.kind, stored.abstain.by) == (sets, by)
    alone = read_lines(cli("predict", run, files["test"], "--batch-size", 1).stdout)
    together = read_lines(cli("predict", run, files["test"]).stdout)
    assert [row["set"] for row in alone] == [row["set"] for row in together]
    assert [row["abstain"] for row in alone] == [row["abstain"] for row in together]


def test_nothing_is_safe_enough(cli, run, rows, files) -> None:
    result = cli("calibrate", run, "--data", rows, "--max-risk", 0.001)
    assert "abstention: ALL ROWS." in result.stdout
    assert "it takes 2995 answered rows without an error" in result.stdout
    assert "the least that they show is" in result.stdout
    found = read_lines(cli("predict", run, files["test"]).stdout)
    assert all(row["abstain"] for row in found) and "set" not in found[0]
    scores = json.loads(cli("eval", run, "--data", files["test"], "--json").stdout)
    assert scores["accepted"] == 0 and "selective_risk" not in scores


def test_again_replaces_and_either_alone(cli, run, rows, files) -> None:
    cli("calibrate", run, "--data", rows, *BOTH)
    cli("calibrate", run / "model", "--data", rows, "--coverage", 0.8)
    stored = bayestune.load(run).guarantees
    assert stored.sets.coverage == 0.8 and stored.abstain is None
    (row,) = read_lines(cli("predict", run, input='{"text": "my parcel"}\n').stdout)
    assert "set" in row and "abstain" not in row


def test_other_draws_promise_nothing(cli, run, rows, files) -> None:
    cli("calibrate", run, "--data", rows, *BOTH)
    result = cli("predict", run, files["test"], "--samples", 7)
    assert "set" not in read_lines(result.stdout)[0]
    assert (
        "calibrated with samples=auto, dtype=float32 and is loaded with samples=7" in result.stderr
    )
    cli("calibrate", run, "--data", rows, *BOTH, "--samples", 7)
    assert "set" in read_lines(cli("predict", run, files["test"], "--samples", 7).stdout)[0]


def test_another_risk_needs_no_rows(cli, run, rows, files) -> None:
    """As a server would do it, from the folder alone."""
    from dataclasses import replace

    cli("calibrate", run, "--data", rows, "--max-risk", 0.2)
    model = bayestune.load(run)
    texts = [row["text"] for row in read_lines(files["test"].read_text())]
    prediction = model.predict(texts)
    rule = replace(model.guarantees.abstain, max_risk=0.6)
    u = uniforms(example.content for example in model.read(texts))
    live = selective.apply(rule, SCORES[rule.by](prediction), u)
    cli("calibrate", run, "--data", rows, "--max-risk", 0.6)
    again = bayestune.load(run).predict(texts).abstain
    assert torch.equal(live, again) and not torch.equal(live, prediction.abstain)
    assert torch.equal(prediction.under(replace(model.guarantees, abstain=rule), u).abstain, live)


# refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "there is nothing to guarantee: give coverage"),
        (("--coverage", 90), "coverage = 90.0 given, expected a number above 0 and below 1"),
        (("--coverage", 1), "coverage = 1.0"),
        (("--max-risk", 0), "max_risk = 0.0"),
        (("--max-risk", "nan"), "max_risk = nan"),
        (("--max-risk", 0.1, "--confidence", 1.5), "confidence = 1.5"),
        (("--coverage", 0.9, "--sets", "lap"), "sets = 'lap' is not known. Did you mean 'lac'?"),
        (("--max-risk", 0.1, "--by", "entropie"), "Did you mean 'entropy'?"),
        (("--coverage", 0.999), "240 rows cannot show a coverage of 0.999: it takes at least 999"),
        (
            ("--coverage", 0.9, "--limit", 8),
            "8 rows cannot show a coverage of 0.9: it takes at least 9",
        ),
    ],
)
def test_bad_options(cli, run, rows, options, said) -> None:
    before = files_under(run)
    assert said in complaint(cli("calibrate", run, "--data", rows, *options, code=None))
    assert files_under(run) == before


def test_rows_that_it_has_seen(cli, run, files, llama_base, tmp_path) -> None:
    said = "holds the rows that the model was trained on or chosen by"
    whole = files["train"]
    seen = bayestune.Task.load(whole)
    parts = seen.split(bayestune.load(run).recipe.train.hold_out, 0)
    for i, part in enumerate((seen, *parts)):
        lines = [{"text": e.text, "label": part.labels[e.label]} for e in part]
        file = write_rows(tmp_path / f"{i}.jsonl", lines)
        sentence = complaint(cli("calibrate", run, "--data", file, "--coverage", 0.8, code=None))
        assert said in sentence
    out = tmp_path / "validated"
    options = ("rank=2", "layers=top:1", "kl=1", "epochs=1")
    train = ("train", "--model", llama_base, "--data", files["train"], "--val", files["val"])
    cli(*train, "--out", out, *options)
    for name in ("train", "val"):
        arguments = ("calibrate", out, "--data", files[name], "--coverage", 0.8)
        assert said in complaint(cli(*arguments, code=None))
    cli("calibrate", out, "--data", files["test"], "--coverage", 0.8)


def test_unlabelled_foreign_and_missing_rows(cli, run, tmp_path) -> None:
    for rows, said in (
        ([{"text": "a"}], "no 'label'"),
        ([{"text": "a", "label": "geology"}], "'geology'"),
        ([], "has no rows"),
    ):
        file = write_rows(tmp_path / "x.jsonl", rows)
        assert said in complaint(
            cli("calibrate", run, "--data", file, "--coverage", 0.8, code=None)
        )
    arguments = ("calibrate", tmp_path / "no", "--data", "x", "--coverage", 0.8)
    assert "does not exist" in complaint(cli(*arguments, code=None))


def test_numbers_have_no_sets(cli, llama_base, tmp_path) -> None:
    rows = [{"text": f"level {i}", "label": i * 0.5} for i in range(30)]
    data, out = write_rows(tmp_path / "n.jsonl", rows), tmp_path / "numbers"
    options = ("--task", "regression", "--out", out, "rank=2", "layers=top:1", "epochs=1")
    cli("train", "--model", llama_base, "--data", data, *options)
    sentence = complaint(cli("calibrate", out, "--data", data, "--coverage", 0.8, code=None))
    assert "sets and abstention are about classes; this model predicts numbers" in sentence


@pytest.mark.parametrize("damage", ["truncated", "changed", "format", "other model", "no object"])
def test_a_damaged_file_is_an_error(cli, run, rows, files, damage) -> None:
    cli("calibrate", run, "--data", rows, *BOTH)
    file = run / "model" / "guarantees.json"
    text, data = file.read_text(), json.loads(file.read_text())
    if damage == "truncated":
        file.write_text(text[:-40])
    elif damage == "no object":
        file.write_text("[1]")
    elif damage == "changed":
        file.write_text(text.replace('"max_risk": 0.2', '"max_risk": 0.01'))
    else:
        from bayestune.store.manifest import digest_of

        data |= {"format": 2} if damage == "format" else {"model": "0" * 64}
        file.write_text(json.dumps({**data, "digest": digest_of(data)}))
    before = file.read_bytes()
    sentence = complaint(cli("predict", run, files["test"], code=None))
    problem = "has format 2; this" if damage == "format" else "is damaged"
    assert f"guarantees.json {problem}" in sentence
    assert file.read_bytes() == before
    file.unlink()  # as it says: then nothing is promised
    assert "set" not in read_lines(cli("predict", run, files["test"]).stdout)[0]


def test_a_full_disk_leaves_what_was_there(cli, run, rows, monkeypatch) -> None:
    cli("calibrate", run, "--data", rows, "--coverage", 0.8)
    before = files_under(run)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayestune.files.os.fsync", full)
    sentence = complaint(cli("calibrate", run, "--data", rows, "--coverage", 0.9, code=None))
    assert "No space left on device" in sentence
    assert files_under(run) == before
