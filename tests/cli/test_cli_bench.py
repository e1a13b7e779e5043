"""``bayestune bench``: what it refuses, prints and leaves, and Ctrl-C in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli_checks import complaint, files_under

import bayestune
from bayestune.bench import load_suite

SOURCE = str(Path(bayestune.__file__).parents[1])


@pytest.fixture
def suite(tmp_path, files, llama_base):
    """A suite file with two tasks and three rows, which start from the rows of other tests."""
    task = {
        "train": "train.jsonl",
        "val": "val.jsonl",
        "test": "test.jsonl",
        "ood": {"oos": "oos.jsonl"},
        "train_rows": 30,
        "test_rows": 20,
    }
    content = {
        "recipe": {
            "model": str(llama_base),
            "adapter": {"rank": 4, "layers": "top:2"},
            "train": {"epochs": 1, "head_lr": 0.05},
        },
        "rates": {"lora": [1e-3, 2e-3, 4e-3], "polar": [4e-3, 8e-3, 1.6e-2]},
        "seeds": 1,
        "tasks": {"topics": task, "again": {**task, "train_rows": 20}},
        "rows": {"mle": None, "temperature": {"start": "mle"}, "polar_vbll": None},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def command(suite, files, tmp_path):
    """The command for one task, without a sweep."""
    place = ["--data", str(files["train"].parent), "--out", str(tmp_path / "out")]
    return ["bench", str(suite), *place, "--tasks", "topics", "--no-sweep"]


def test_a_table_and_cells(cli, command, tmp_path):
    dry = cli(*command, "--methods", "temperature", "--dry-run")
    assert dry.stdout == f"0 of 2 trainings are there, in {tmp_path / 'out'}\n"
    assert not (tmp_path / "out").exists()
    result = cli(*command, "--methods", "temperature")
    lines = result.stdout.splitlines()
    assert lines[0] == "### topics: 30 training, 30 held-out, 20 test rows"
    assert "Learning rate not tuned: all rows." in lines
    assert [line.split("|")[1].strip() for line in lines[-4:-1]] == ["---", "mle", "temperature"]
    assert lines[-2].split("|")[2:4] == [" 1 ", " 0.002 "]
    assert "1/2: topics mle seed 0 lr 0.002: NLL " in result.stderr
    assert "2/2: topics temperature seed 0 lr 0.002: NLL " in result.stderr
    cells = sorted((tmp_path / "out").rglob("cell.json"))
    assert [json.loads(cell.read_text())["rates"] for cell in cells] == [[0.002], [0.002]]
    before = files_under(tmp_path / "out")
    again = cli(*command, "--methods", "temperature")
    assert again.stdout == result.stdout
    assert "2 of 2 trainings are there" in again.stderr
    assert files_under(tmp_path / "out") == before
    assert "1 of 9" not in cli(*command[:-1], "--dry-run").stdout  # a sweep has more to do
    other = complaint(cli(*command, "epochs=2", code=2))
    assert "is of another suite: its train is" in other


def test_the_sweep_and_seeds_are_counted(cli, command):
    sweep = command[:-1]
    assert cli(*command, "--dry-run").stdout.startswith("0 of 3 trainings")
    assert cli(*sweep, "--dry-run").stdout.startswith("0 of 7 trainings")
    assert cli(*sweep, "--seeds", 3, "--dry-run").stdout.startswith("0 of 13 trainings")
    both = [a if a != "topics" else "topics, again" for a in sweep]
    assert cli(*both, "--dry-run").stdout.startswith("0 of 14 trainings")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "mle,polar_vbl"), "no row 'polar_vbl'. Did you mean 'polar_vbll'?"),
        (("--methods", ""), "no row ''. Valid: 'mle', 'temperature', 'polar_vbll'."),
        (("--tasks", "topic"), "no task 'topic'. Did you mean 'topics'?"),
        (("train.lr=1e-3",), "train.lr cannot be set here: rates sets it"),
        (("seed=3",), "seed cannot be set here: seeds sets it"),
        (("method=mle",), "method cannot be set here: the rows set it"),
        (("rankk=3",), "unknown key rankk"),
        (("rank",), "not of the form key=value"),
        (("--data", "nowhere"), "There is no folder nowhere"),
        (("--device", "gpu"), "gpu"),
    ],
)
def test_what_is_wrong_is_said(options, words, cli, command):
    assert words in complaint(cli(*command, *options, code=2))


def test_an_unknown_suite(cli):
    words = "There is no suite 'smok'; give a YAML file or one that ships. Did you mean 'smoke'?"
    assert complaint(cli("bench", "smok", code=2)) == words
    assert cli("bench", "smoke", "--seeds", "0", code=None).exit_code == 2


def test_rows_of_which_every_rate_broke_off(cli, suite, command):
    content = yaml.safe_load(suite.read_text())
    content["rows"] = {"wild": {"method": "mle", "recipe": {"train": {"head_lr": 3e37}}}}
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    result = cli(*command)
    assert result.stdout.strip() == ""
    assert "1/1: topics wild seed 0 lr 0.002: The loss is" in result.stderr
    assert "topics wild: every learning rate broke off" in result.stderr


def test_the_first_look_needs_no_data(cli, tmp_path, monkeypatch, llama_base):
    monkeypatch.chdir(tmp_path)
    result = cli("bench", "smoke", f"model={llama_base}", "dtype=float32")
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == list(load_suite("smoke").rows)
    assert "out-of-scope (40)" in result.stdout
    cells = list((tmp_path / "bench" / "smoke").rglob("cell.json"))
    assert {json.loads(cell.read_text())["recipe"]["model"] for cell in cells} == {str(llama_base)}


def started(command: list[str], devices: str) -> tuple[list[str], subprocess.Popen[str]]:
    """Start a benchmark of some time; return when its first training is there."""
    slow = [*command[:-1], "--methods", "mle", "--device", devices, "--seeds", "9", "epochs=6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bayestune.cli", *slow],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal, all its processes hear of Ctrl-C
    )
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("1/11: "))
    assert "topics mle seed 0" in said
    return slow, process


def test_workers_end_with_the_process_that_was_killed(command):
    _, process = started(command, "cpu,cpu")
    process.kill()
    process.communicate(timeout=30)  # the pipes are the workers', too: they close with the last one


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_ctrl_c_keeps_what_is_there(devices, cli, command, tmp_path):
    out = tmp_path / "out"
    slow, process = started(command, devices)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    sentence = (
        f"bayestune: interrupted; {out} holds all trainings that were complete: run the same "
        "command again to go on."
    )
    assert sentence in stderr.splitlines()
    assert "Traceback" not in stderr
    assert stdout == ""
    there = {path.parent.name for path in out.rglob("cell.json")}
    assert 1 <= len(there) < 11
    assert not list(out.rglob(".*"))  # no half cells
    slow[slow.index("9")] = "1"
    left = 3 - sum(name.startswith("seed0") for name in there)
    counted = cli(*slow, "--dry-run").stdout
    assert counted.startswith(f"{3 - left} of 3 trainings are there")
