"""``bayestune train --launch``: the same run from several processes, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_checks import complaint

import bayestune

distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(bayestune.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if sys.platform == "linux":  # no look-up of the machine's name
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    words = [sys.executable, "-m", "bayestune.cli", *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)


@distributed
def test_a_launched_run_is_the_run_of_one_process(train_arguments, runs, tmp_path) -> None:
    out = tmp_path / "run"
    done = command(*train_arguments, "--out", out, "--launch", "ddp", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in") == 1  # one of them speaks
    assert done.stderr.count("90 rows, 3 classes") == 1
    alone = runs["polar_vbll"][0]
    for row, expected in zip(*map(history, (out, alone)), strict=True):
        assert row == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in alone.iterdir())


def history(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "stable_ranks"} for row in rows]


@distributed
def test_processes_end_as_the_first_that_fails(tmp_path) -> None:
    options = ("--out", tmp_path / "run", "--launch", "ddp", "-n", "2")
    done = command("train", "--data", tmp_path / "none.jsonl", *options)
    assert done.returncode == 2
    assert "none.jsonl: no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--launch", "deepspeed", "-n", "2"), "DeepSpeed ZeRO and the first FSDP flatten"),
        (("--launch", "zero3"), "a factor with orthonormal columns has to stay a matrix"),
        (("--launch", "dpp", "-n", "2"), "Did you mean 'ddp'?"),
        (("-n", "2"), "-n is the number of processes of --launch"),
        (("--launch", "ddp", "-n", "2", "--dry-run"), "--dry-run estimates one process"),
    ],
)
def test_what_cannot_be_launched(cli, train_arguments, tmp_path, options, said) -> None:
    result = cli(*train_arguments, "--out", tmp_path / "run", *options, code=None)
    assert said in complaint(result)


def test_without_a_gpu_the_number_is_needed(cli, train_arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = cli(*train_arguments, "--out", tmp_path / "run", "--launch", "ddp", code=None)
    assert "needs -n, the number of processes" in complaint(result)
