"""``bayestune eval``: one JSON object, the table, the gate."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_checks import complaint, files_under, read_lines, write_rows

import bayestune

METRICS = {"n", "accuracy", "nll", "ece", "brier", "aurc", "ood"}
DETECTION = {
    "auroc_max_prob",
    "auroc_entropy",
    "auroc_mutual_information",
    "auroc_density",
    "fpr95",
}


def numbers(value) -> list[float]:
    """Return all leaves, which must be numbers and finite."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    assert isinstance(value, int | float)
    assert not isinstance(value, bool)
    assert math.isfinite(value)
    return [value]


@pytest.mark.parametrize("method", ["polar_vbll", "mle"])
def test_json_is_one_object_of_numbers(cli, runs, files, method) -> None:
    folder = runs[method][0]
    result = cli(
        *("eval", folder, "--data", files["test"], "--json"),
        *("--ood", f"oos={files['oos']}", "--ood", f"same={files['test']}"),
    )
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert found.keys() >= METRICS
    assert found["n"] == 60
    assert found["ood"].keys() == {"oos", "same"}
    for values in found["ood"].values():
        assert values.keys() >= DETECTION
    assert numbers(found)
    assert found["ood"]["same"]["auroc_max_prob"] == 0.5  # the same rows on both sides
    if method == "mle":
        assert found["ood"]["oos"]["auroc_mutual_information"] == 0.5
    # Independently of the command line.
    rows = read_lines(files["test"].read_text())
    predicted = bayestune.load(folder).predict([row["text"] for row in rows]).labels
    right = [p == row["label"] for p, row in zip(predicted, rows, strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / 60)


def test_a_run_and_its_model_are_the_same(cli, run_folder, files) -> None:
    texts = [
        cli("eval", folder, "--data", files["test"], "--json").stdout
        for folder in (run_folder, run_folder / "model")
    ]
    assert texts[0] == texts[1]


def test_batch_size_changes_nothing_but_rounding(cli, run_folder, files) -> None:
    a, b = (
        json.loads(cli("eval", run_folder, "--data", files["test"], "--json", *size).stdout)
        for size in ((), ("--batch-size", 7))
    )
    assert a["nll"] == pytest.approx(b["nll"], abs=1e-5)


def test_table_with_intervals(cli, run_folder, files) -> None:
    result = cli("eval", run_folder, "--data", files["test"], "--ood", f"oos={files['oos']}")
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    found = json.loads(cli("eval", run_folder, "--data", files["test"], "--json").stdout)
    for name in ("accuracy", "nll", "ece", "brier"):
        low, high = found["intervals"][name]
        assert rows[name].split()[1:] == [f"{found[name]:.4f}", f"{low:.4f}", "–", f"{high:.4f}"]
    assert rows["60"] == "60 rows"
    assert "oos (20 rows)" in result.stdout
    value, low, _, high = rows["auroc_density"].split()[1:]
    assert 0 <= float(low) <= float(value) <= float(high) <= 1
    assert rows.keys() >= DETECTION


def test_gate(cli, run_folder, files) -> None:
    arguments = ("eval", run_folder, "--data", files["test"], "--json")
    ece = json.loads(cli(*arguments).stdout)["ece"]
    assert ece > 0
    cli(*arguments, "--max-ece", ece)  # not larger
    failed = cli(*arguments, "--max-ece", ece * 0.99, code=None)
    assert "the gate failed: ECE is" in complaint(failed, 3)
    assert json.loads(failed.stdout)["ece"] == ece  # the numbers are there all the same


def test_out_holds_the_same_object(cli, run_folder, files, tmp_path) -> None:
    before = sorted(run_folder.rglob("*"))
    arguments = ("eval", run_folder, "--data", files["test"])
    text = cli(*arguments, "--json", "--out", tmp_path / "deep" / "found.json").stdout
    assert (tmp_path / "deep" / "found.json").read_text() == text
    assert sorted(run_folder.rglob("*")) == before


def test_limit_and_single_rows(cli, run_folder, files) -> None:
    result = cli(
        *("eval", run_folder, "--data", files["test"], "--json", "--limit", 1),
        *("--ood", f"oos={files['oos']}"),
    )
    found = json.loads(result.stdout)
    assert found["n"] == 1
    assert numbers(found)


def test_ood_rows_may_have_other_labels_or_none(cli, run_folder, files, tmp_path) -> None:
    texts = [{"text": "volcano"}, {"text": "orchid"}]
    foreign = [{**row, "label": label} for row, label in zip(texts, ("geology", 3.5), strict=True)]
    values = [
        json.loads(
            cli(
                *("eval", run_folder, "--data", files["test"], "--json"),
                *("--ood", f"x={write_rows(tmp_path / 'x.jsonl', rows)}"),
            ).stdout
        )["ood"]["x"]
        for rows in (texts, foreign)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["oos"], "'oos' is not of the form NAME=FILE"),
        (["=a.jsonl"], "is not of the form NAME=FILE"),
        (["a="], "is not of the form NAME=FILE"),
        (["a=x.jsonl", "a=y.jsonl"], "names 'a' twice"),
        (["a=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_malformed_ood(cli, run_folder, files, pairs, said) -> None:
    options = [part for pair in pairs for part in ("--ood", pair)]
    result = cli("eval", run_folder, "--data", files["test"], "--json", *options, code=None)
    assert said in complaint(result)
    assert result.stdout == ""


def test_a_moved_backbone(cli, run_folder, llama_base, tied_base, files, tmp_path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(llama_base, moved)
    arguments = ("eval", run_folder, "--data", files["test"], "--json")
    assert cli(*arguments, "--base", moved).stdout == cli(*arguments).stdout
    assert "is not the one" in complaint(cli(*arguments, "--base", tied_base, code=None))


def test_a_process_of_its_own_prints_nothing_else(run_folder, files) -> None:
    """Also what other libraries write past Python's streams would be seen here."""
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "bayestune.cli",
            "eval",
            run_folder,
            "--data",
            files["test"],
            "--json",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(bayestune.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["n"] == 60
    assert process.stdout.count("\n") == 1
    first, *rest = process.stderr.splitlines()
    assert first == f"loading {run_folder}"
    assert all(line.startswith("features: ") for line in rest)  # where it takes a second or more


@pytest.mark.parametrize("drawn", [True, False])
def test_the_card_states_what_was_measured(drawn, cli, run_folder, files, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    before = files_under(run)
    plain = cli("eval", run, "--data", files["test"], "--json")
    assert files_under(run) == before  # only --card changes anything
    if drawn:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setattr("bayestune.cli.eval.find_spec", lambda name: None)
    result = cli("eval", run, "--data", files["test"], "--card", "--json")
    assert result.stdout == plain.stdout
    assert f"{run}/model/README.md states these numbers" in result.stderr
    after = files_under(run)
    (figure,) = [name for name in after if name.endswith(".png")] or [None]
    assert (figure is not None) == drawn
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"model/README.md", "model/evaluation.json", figure} - {None}
    card = after["model/README.md"].decode()
    assert "On 60 rows of `test.jsonl` (hash " in card
    assert f"| accuracy | {json.loads(result.stdout)['accuracy']:.4g} | " in card
    if figure is not None:
        assert after[figure].startswith(b"\x89PNG") and f"({Path(figure).name})" in card


def test_the_card_takes_no_rows_that_the_run_has_seen(cli, run_folder, files) -> None:
    before = files_under(run_folder)
    said = complaint(cli("eval", run_folder, "--data", files["train"], "--card", code=None))
    assert "trained on or chosen by: a card states what it is worth on others" in said
    assert files_under(run_folder) == before
