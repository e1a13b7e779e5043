"""The common-sense suites: from files and from the Hub's layouts, shifted rows, overrides."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from toy_tasks import choice_rows
from typer.testing import CliRunner

from bayestune import metrics
from bayestune.bench import Key, load_suite, read, read_arrays, read_splits
from bayestune.bench.reading import read_suite
from bayestune.bench.splits import choose
from bayestune.bench.suite import TaskSpec
from bayestune.cli.app import app
from bayestune.config import to_mapping
from bayestune.data import hub
from bayestune.data.hub import HubSource, parse_hub
from bayestune.errors import ConfigError

SUITE = load_suite("commonsense")
FILES = {
    "winogrande/train_s.jsonl": (90, 2),
    "winogrande/train_m.jsonl": (300, 2),
    "winogrande/dev.jsonl": (20, 2),
    **{
        f"{name}/{part}.jsonl": (20, count)
        for name, count in (("arc_challenge", 5), ("arc_easy", 3), ("openbookqa", 4))
        for part in ("train", "validation", "test")
    },
    "boolq/train.jsonl": (520, 2),
    "boolq/dev.jsonl": (20, 2),
    "mmlu_college_chemistry/test.jsonl": (20, 4),
    "mmlu_college_physics/test.jsonl": (20, 4),
}


def invoke(arguments: list[str]):
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder laid out as the suite reads it; half of ARC's questions have one choice fewer."""
    root = tmp_path_factory.mktemp("data")
    for seed, (name, (count, choices)) in enumerate(FILES.items()):
        sizes = (choices, choices - 1) if name.startswith("arc_challenge") else (choices,)
        rows = [{**row, "id": i} for i, row in enumerate(choice_rows(count, seed, sizes))]
        for row in rows:
            # The number of the row makes it one of its own; WinoGrande's have a blank.
            row["question"] += f" in {row['id']} of {name} _"
            row["answer"] = string.ascii_uppercase.index(row["answer"])
            if name.startswith("boolq"):
                row["passage"], row["choices"] = f"about {row['id']}", ["no", "yes"]
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def as_on_the_hub(name: str, row: dict) -> dict:
    """Return a row in the layout of its data set on the Hub."""
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if name == "allenai/winogrande":
        options = dict(zip(("option1", "option2"), choices, strict=True))
        return {"sentence": question, **options, "answer": str(answer + 1)}
    if name == "google/boolq":
        return {"question": question, "passage": row["passage"], "answer": bool(answer)}
    if name == "cais/mmlu":
        return {"question": question, "choices": choices, "answer": answer, "subject": "college"}
    markers = list("12345" if row["id"] % 2 else "ABCDE")[: len(choices)]
    key = "question_stem" if name == "allenai/openbookqa" else "question"
    listed = {"text": choices, "label": markers}
    return {"id": row["id"], key: question, "choices": listed, "answerKey": markers[answer]}


def contents(task) -> list[tuple]:
    return [(e.question, e.choices, e.passage, e.label) for e in task]


def test_the_protocol() -> None:
    assert list(SUITE.tasks) == [
        *("winogrande-s", "winogrande-m", "arc-challenge", "arc-easy", "openbookqa", "boolq")
    ]
    for task in SUITE.tasks:
        for row in SUITE.rows:
            recipe = SUITE.recipe_of(task, row)
            assert (recipe.train.max_steps, recipe.train.batch_size) == (5000, 4)
            assert (recipe.adapter.rank, recipe.adapter.layers) == (8, "all")
            assert recipe.adapter.alpha == (8 if row == "bayesian_lora-published" else 16)
    assert all(len(rates) == 3 for rates in SUITE.rates.values())
    assert list(SUITE.tasks["openbookqa"].shifted) == [
        *("arc-challenge", "arc-easy", "chemistry", "physics")
    ]


def test_the_variant_with_epochs_differs_in_nothing_else() -> None:
    other = load_suite("commonsense-epochs")
    assert (other.tasks, other.rows, other.rates) == (SUITE.tasks, SUITE.rows, SUITE.rates)
    for row in SUITE.rows:
        steps, epochs = (to_mapping(s.recipe_of("boolq", row)) for s in (SUITE, other))
        assert steps["train"] | {"max_steps": 0, "epochs": 4} == epochs["train"]
        assert {**steps, "train": None} == {**epochs, "train": None}


@pytest.mark.parametrize("task", list(SUITE.tasks))
def test_folder_and_hub_are_the_same_rows(folder, task, monkeypatch) -> None:
    spec = SUITE.tasks[task]
    files: dict[HubSource, Path] = {}
    parts = [spec.train, spec.test, *([spec.val] if spec.val else []), *spec.shifted.values()]
    for *names, remote in parts:
        files[parse_hub(remote)] = folder / names[0]

    def split(source: HubSource) -> list[dict]:
        lines = files[source].read_text().splitlines()
        return [as_on_the_hub(source.name, json.loads(line)) for line in lines]

    here = read_splits(spec, folder, 0)
    monkeypatch.setattr(hub, "load_split", split)
    there = read_splits(spec, None, 0)
    for part in ("train", "val", "test"):
        assert contents(getattr(here, part)) == contents(getattr(there, part)) != []
    assert {k: contents(v) for k, v in here.shifted.items()} == {
        k: contents(v) for k, v in there.shifted.items()
    }
    assert all(name.endswith(".jsonl") for name in here.sources.values())
    assert all(name.startswith("hf:") for name in there.sources.values())
    assert here.sources.keys() == there.sources.keys()


def test_the_first_source_that_is_there_is_read(tmp_path) -> None:
    (tmp_path / "b.jsonl").touch()
    assert choose(["a.jsonl", "b.jsonl", "hf:o/n"], tmp_path) == "b.jsonl"
    assert choose(["a.jsonl", "hf:o/n"], tmp_path) == "hf:o/n"
    assert choose(["b.jsonl", "hf:o/n"], None) == "hf:o/n"
    assert choose("a.jsonl", tmp_path) == "a.jsonl"  # which reading it will complain of
    with pytest.raises(ConfigError, match=r"a.jsonl is a file: give the folder"):
        choose("a.jsonl", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, r"train is \[\]; expected the name of a source, or a list"),
        ({"test": 3}, "test is 3; expected the name"),
        ({"shifted": {"x": [1]}}, r"x is \[1\]; expected the name"),
        ({"ood": {"x": "a"}, "shifted": {"x": "b"}}, "two sets of rows are called 'x'"),
        ({"ood": {"val": "a"}}, "two sets of rows are called 'val'"),
    ],
)
def test_sources_are_checked(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskSpec(**{"train": "a", "test": "b", "val": "c", **changes})


def test_shifted_rows_with_more_choices_than_classes_are_left_out(folder) -> None:
    found = read_splits(SUITE.tasks["openbookqa"], folder, 0)
    assert len(found.train.labels) == 4
    assert len(found.shifted["arc-challenge"]) == 10 and found.dropped["arc-challenge"] == 10
    assert len(found.shifted["arc-easy"]) == 20 and "arc-easy" not in found.dropped
    assert all(min(rows.targets) >= 0 for rows in found.shifted.values())
    assert found.counts["shifted"] == {
        **{"arc-challenge": 10, "arc-easy": 20},
        **{"chemistry": 20, "physics": 20},
    }


@pytest.fixture(scope="module")
def ran(folder, llama_base, tmp_path_factory):
    """One training of the suite from the command line; the cells' folder, command and output."""
    root = tmp_path_factory.mktemp("bench")
    # The suite with one rate, as a file of the user's own.
    rates = "rates: {lora: [1e-4], contextual: [1e-4], polar: [1e-3]}"
    (root / "mine.yaml").write_text(f"base: commonsense\n{rates}\n")
    arguments = [
        *("bench", str(root / "mine.yaml"), "max_steps=7", "adapter.layers=top:1"),
        *("train.kl=1", "--data", str(folder), "--model", str(llama_base)),
        *("--out", str(root / "cells")),
        *("--tasks", "openbookqa", "--methods", "polar_vbll", "--seeds", "1"),
    ]
    result = invoke(arguments)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    return root / "cells", arguments, result


KEY = Key("openbookqa", "polar_vbll", 0, 1e-3)


def test_a_run_with_overrides(ran, llama_base) -> None:
    cell = read(KEY, ran[0])
    assert Path(cell.recipe["model"]) == llama_base
    assert cell.recipe["train"]["max_steps"] == 7 and cell.recipe["adapter"]["layers"] == "top:1"
    assert (
        cell.rows["sources"]
        | {
            "train": "openbookqa/train.jsonl",
            "chemistry": "mmlu_college_chemistry/test.jsonl",
        }
        == cell.rows["sources"]
    )


def test_shifted_rows_are_measured_as_test_rows_are(ran) -> None:
    out, _, result = ran
    cell, arrays = read(KEY, out), read_arrays(KEY, out)
    assert list(cell.shifted) == list(SUITE.tasks["openbookqa"].shifted) and cell.ood == {}
    for name, found in cell.shifted.items():
        probs, targets = arrays[f"shifted.{name}.probs"], arrays[f"shifted.{name}.targets"]
        assert len(targets) == cell.rows["shifted"][name]
        expected = -probs[torch.arange(len(targets)), targets].double().log().mean()
        assert found["nll"] == pytest.approx(float(expected), rel=1e-5)
        assert found["accuracy"] == float((probs.argmax(1) == targets).double().mean())
        assert found["ece"] == pytest.approx(metrics.ece(probs, targets), abs=1e-6)
        assert 0 <= found["auroc_mutual_information"] <= 1
    # ARC-Easy's questions have three choices here, of four letters.
    assert not arrays["shifted.arc-easy.probs"][:, 3].any()
    head = "Labelled rows from elsewhere: arc-challenge (10), arc-easy (20), chemistry (20)"
    lines = result.stdout.partition(head)[2].splitlines()
    columns, row = ([c.strip() for c in lines[i].split("|")] for i in (2, 4))
    shown = dict(zip(columns, row, strict=True))
    assert shown["physics, NLL"] == f"{cell.shifted['physics']['nll']:.3f}"


def test_cells_of_an_earlier_version_are_still_this_suites(ran) -> None:
    out, arguments, _ = ran
    path = KEY.folder(out) / "cell.json"
    text = path.read_text()
    cell = json.loads(text)
    for section, name in (("recipe", "predict"), ("spec", "test_rows")):
        del cell[section][name]  # as no version wrote it before there was such a key
    try:
        path.write_text(json.dumps(cell))
        assert invoke([*arguments, "--dry-run"]).exit_code == 0
        cell["recipe"]["seed"] = 5
        path.write_text(json.dumps(cell))
        refused = invoke([*arguments, "--dry-run"])
        assert refused.exit_code == 2
        assert "of another suite: its seed is 5, here it is 0" in refused.stderr
    finally:
        path.write_text(text)


def test_the_same_command_goes_on_and_another_is_refused(ran) -> None:
    _, arguments, result = ran
    again = invoke(arguments)
    assert again.exit_code == 0 and again.stdout == result.stdout
    other = invoke([*arguments, "max_steps=8"])
    assert other.exit_code == 2 and "of another suite: its train is" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr=1e-3"], "train.lr cannot be set here: rates sets it"),
        (["seed=3"], "seed cannot be set here: seeds sets it"),
        (["method=mle"], "method cannot be set here: the rows set it"),
        (["max_step=3"], "unknown key max_step. Did you mean 'max_steps'"),
        (["adapter.kind=polar", "--dry-run"], "tfb is about LoRA"),
    ],
)
def test_overrides_are_checked(arguments, message, tmp_path) -> None:
    command = ["bench", "commonsense", "--out", str(tmp_path / "cells"), *arguments]
    result = invoke(command)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "cells").exists()


def test_a_folder_that_is_not_there_is_no_reason_to_ask_the_hub(tmp_path) -> None:
    result = invoke(["bench", "commonsense", "--data", str(tmp_path / "none")])
    assert result.exit_code == 2 and "There is no folder" in result.stderr


def test_a_base_is_a_shipped_suite() -> None:
    found = read_suite(
        {"base": "commonsense", "seeds": 1, "tasks": {"boolq": {"val_rows": 9}}}, "s"
    )
    assert found.seeds == 1 and found.tasks["boolq"].val_rows == 9
    assert found.tasks["boolq"].train == SUITE.tasks["boolq"].train
    assert list(found.rows) == list(SUITE.rows)
    assert list(read_suite({"base": "commonsense", "rows": {"blob": {}}}, "s").rows) == ["blob"]
    with pytest.raises(ConfigError, match=r"There is no suite 'comonsense'.*mean 'commonsense'"):
        read_suite({"base": "comonsense"}, "s")
