"""``bayestune update``: in place and elsewhere, once and again, and what works on the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_checks import complaint, files_under, read_lines, write_rows
from toy_tasks import topic_rows

import bayestune


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Labelled rows that no run has seen."""
    return write_rows(tmp_path_factory.mktemp("new") / "new.jsonl", topic_rows(40, 21))


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy of a run that a test may update."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_a_run_is_replaced_by_the_updated_one(cli, run, rows, files) -> None:
    before = files_under(run)
    plain = read_lines(cli("predict", run, files["test"]).stdout)
    result = cli("update", run, "--data", rows)
    assert result.stdout.startswith("40 new rows; their mean negative log-likelihood in nats was ")
    assert f"saved in {run / 'model'}" in result.stdout
    after = files_under(run)
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        f"model/{n}"
        for n in ("adapter_model.safetensors", "posterior.safetensors", "bayestune.json")
    }
    old, new = (json.loads(f["model/bayestune.json"]) for f in (before, after))
    (note,) = new["notes"]["updates"]
    assert note["rows"] == 40 and len(note["hash"]) == 64 and note["when"].endswith("+00:00")
    for key in ("recipe", "base", "task", "method", "versions"):
        assert new[key] == old[key]
    found = read_lines(cli("predict", run, files["test"]).stdout)
    assert [list(row) for row in found] == [list(row) for row in plain]
    assert [row["probs"] for row in found] != [row["probs"] for row in plain]
    cli("eval", run, "--data", files["test"])
    assert bayestune.load(run).notes == new["notes"]


def test_another_folder_leaves_the_run_alone(cli, run, rows, files, tmp_path) -> None:
    before, out = files_under(run), tmp_path / "new" / "run"
    result = cli("update", run, "--data", rows, "--out", out, "--json")
    found = json.loads(result.stdout)
    assert found["rows"] == 40 and found["model"] == str(out / "model")
    assert found["density"] is True and found["guarantees_dropped"] is False
    assert files_under(run) == before
    assert files_under(out).keys() == {k for k in before if k.startswith("model/")}
    # What is loaded predicts, bit by bit, as the model that was updated in memory.
    model = bayestune.load(run)
    bayestune.update(model, bayestune.Task.load(rows, like=model.task))
    texts = [row["text"] for row in read_lines(files["test"].read_text())]
    saved = bayestune.load(out)
    assert torch.equal(saved.predict(texts).probs, model.predict(texts).probs)
    assert torch.equal(saved.predict(texts).ood_score, model.predict(texts).ood_score)
    assert "already holds a run" in complaint(
        cli("update", run, "--data", rows, "--out", out, code=None)
    )


def test_the_same_file_counts_once_unless_asked_for(cli, run, rows, files) -> None:
    cli("update", run, "--data", rows)
    before = files_under(run)
    said = complaint(cli("update", run, "--data", rows, code=None))
    assert "learnt from already" in said and "--again" in said
    assert "learnt from already" in complaint(
        cli("update", run, "--data", files["train"], code=None)
    )
    assert files_under(run) == before
    cli("update", run, "--data", rows, "--again")
    assert len(bayestune.load(run).notes["updates"]) == 2
    cli("update", run, "--data", rows, "--limit", 7)
    assert bayestune.load(run).notes["updates"][2]["rows"] == 7


def test_guarantees_are_dropped_and_can_be_made_again(cli, run, rows, tmp_path) -> None:
    cal = write_rows(tmp_path / "cal.jsonl", topic_rows(60, 31))
    cli("calibrate", run, "--data", cal, "--coverage", 0.9)
    result = cli("update", run, "--data", rows)
    assert "sets and abstention are dropped" in result.stdout
    assert not (run / "model" / "guarantees.json").exists()
    assert "updated with" in complaint(
        cli("calibrate", run, "--data", rows, "--coverage", 0.9, code=None)
    )
    cli("calibrate", run, "--data", cal, "--coverage", 0.9)
    assert bayestune.load(run).guarantees is not None


def test_unknown_classes_and_points_are_refused(cli, run, runs, rows, tmp_path) -> None:
    odd = write_rows(tmp_path / "odd.jsonl", [{"text": "is it raining", "label": "weather"}])
    before = files_under(run)
    assert "weather" in complaint(cli("update", run, "--data", odd, code=None))
    assert files_under(run) == before
    said = complaint(cli("update", runs["mle"][0], "--data", rows, code=None))
    assert "last_layer_laplace --from RUN" in said


def test_a_full_disk_leaves_the_old_model(cli, run, rows, monkeypatch) -> None:
    before = files_under(run)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayestune.store.update.write_json", full)
    assert "No space left" in complaint(cli("update", run, "--data", rows, code=None))
    assert files_under(run) == before
