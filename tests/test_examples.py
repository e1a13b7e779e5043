"""The examples run as they are, on a tiny backbone."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

import bayestune as bt
from bayestune.data.quickstart import quickstart_path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_minimal_is_short_and_learns(monkeypatch, llama_base, capsys):
    script = EXAMPLES / "minimal.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 120
    found = run(monkeypatch, "minimal.py", "--model", llama_base, "--epochs", 3, "--rows", 160)
    said = capsys.readouterr().out.splitlines()
    nll = [float(line.split("nll ")[1].split(",")[0]) for line in said[:3]]
    assert nll[2] < nll[0] - 0.05
    assert found["adapter"].largest_orthogonality_error() < 1e-5
    assert len(found["known"].probs) == 300


@pytest.fixture
def rows(tmp_path):
    """Return files of some quick-start rows."""
    for name, count in (("train", 160), ("test", 40)):
        lines = quickstart_path(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[:count]), encoding="utf-8")
    return ["--train", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl"]


@pytest.mark.parametrize("adapter", ["polar", "lora"])
def test_the_trainer_example_leaves_what_it_says(
    adapter, monkeypatch, llama_base, rows, tmp_path, capsys
):
    options = ["--cpu", "--epochs", 2, "--adapter", adapter, "--out", tmp_path / "out"]
    run(monkeypatch, "hf_trainer.py", "--model", llama_base, *rows, *options)
    said = capsys.readouterr().out
    assert "test_nll" in said and "model_nll" in said
    assert len([line for line in said.splitlines() if line.startswith('{"text"')]) == 3
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    assert list((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    model = bt.load(tmp_path / "out" / "model")
    assert model.method.name == f"{adapter}_vbll"
    assert model.density is not None
    kept = json.loads((tmp_path / "out" / "model" / "bayestune.json").read_text(encoding="utf-8"))
    assert kept["notes"]["chosen"]["trained_by"] == "transformers.Trainer"
