"""Help, versions, misspelt verbs and options, closed pipes: without anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bayestune

SOURCE = str(Path(bayestune.__file__).parents[1])
VERBS = (
    [],
    ["train"],
    ["eval"],
    ["calibrate"],
    ["update"],
    ["predict"],
    ["export"],
    ["bench"],
    ["methods"],
    ["report"],
    ["demo"],
    ["doctor"],
    ["config"],
    ["config", "ls"],
    ["config", "cp"],
    ["config", "show"],
)
HEAVY = ("torch", "transformers", "peft", "numpy", "datasets", "pyarrow", "safetensors", "yaml")


def start(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    program = f"""
import sys
from typer.testing import CliRunner
from bayestune.cli.app import app
for verb in {VERBS!r}:
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0 and "Usage: " in result.stdout, (verb, result.output)
print(sorted({set(HEAVY)!r} & set(sys.modules)))
"""
    stdout, stderr = start("-c", program).communicate()
    assert stdout.strip() == "[]", stderr


@pytest.mark.parametrize("verb", [[], ["train"]])
def test_help_takes_less_than_a_second(verb: list[str]) -> None:
    def seconds() -> float:
        started = time.perf_counter()
        process = start("-m", "bayestune.cli", *verb, "--help")
        assert "Usage: bayestune" in process.communicate()[0]
        return time.perf_counter() - started

    # The best of three, because a busy machine can only make it slower.
    assert min(seconds() for _ in range(3)) < 1.0


def test_help_is_plain_and_names_what_it_takes(cli) -> None:
    text = cli("train", "--help").stdout
    for word in ("--data", "--val", "--method", "--out", "--dry-run", "--resume", "KEY=VALUE"):
        assert word in text
    assert "hf:NAME[/CONFIG][:SPLIT]" in text


def test_version(cli) -> None:
    assert cli("--version").stdout.strip() == f"bayestune {bayestune.__version__}"


def test_no_verb_shows_help(cli) -> None:
    result = cli(code=None)
    assert "Usage: bayestune" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "'train'"),
        (["train", "--mehtod", "mle"], "--method"),
        (["eval", "run", "--dta", "x"], "--data"),
        (["train"], "--data"),
        (["eval", "run"], "--data"),
        (["train", "--data", "x", "--seed", "many"], "--seed"),
        (["eval", "run", "--data", "x", "--max-ece", "2"], "--max-ece"),
        (["config", "shwo"], "'show'"),
    ],
)
def test_usage_errors_name_the_nearest_and_exit_2(cli, arguments, named) -> None:
    result = cli(*arguments, code=2)
    assert named in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_is_quiet() -> None:
    process = start("-m", "bayestune.cli", "config", "ls")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize("way", ["option", "variable"])
def test_debug_shows_the_traceback(cli, way, monkeypatch) -> None:
    arguments = ["config", "cp", "nowhere", "x"]
    if way == "variable":
        monkeypatch.setenv("BAYESTUNE_DEBUG", "1")
    else:
        arguments.append("--debug")
    result = cli(*arguments, code=2)
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("bayestune: There is no recipe 'nowhere'")


def test_debug_before_the_verb_and_switched_off_by_0(cli, monkeypatch) -> None:
    assert "Traceback" in cli("--debug", "config", "cp", "nowhere", "x", code=2).stderr
    monkeypatch.setenv("BAYESTUNE_DEBUG", "0")
    assert "Traceback" not in cli("config", "cp", "nowhere", "x", code=2).stderr


@pytest.mark.parametrize(
    ("words", "expected"), [("bayestune tr", "train"), ("bayestune train --meth", "--method")]
)
def test_the_shell_completes_verbs_and_options(words: str, expected: str) -> None:
    asked = {"_BAYESTUNE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(words.count(" "))
    done = subprocess.run(
        [sys.executable, "-c", "from bayestune.cli.app import main; main()"],
        env={**os.environ, "PYTHONPATH": SOURCE, **asked},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [expected]
