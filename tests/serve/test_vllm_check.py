"""The end-to-end check of a GPU machine: what it starts and compares; vLLM itself is not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from bayestune.exports import export


@pytest.fixture(scope="module")
def check() -> Any:
    path = Path(__file__).parents[2] / "bench" / "vllm_check.py"
    spec = importlib.util.spec_from_file_location("vllm_check", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_is_the_cards(check, trained, tmp_path) -> None:
    folder = export(trained, to="vllm", out=tmp_path / "an export")
    card = (folder / "README.md").read_text().replace("PATH", "/exports/x")
    (folder / "README.md").write_text(card)
    environment, command = check.command_of(folder)
    assert environment == {"BAYESTUNE_SIDECARS": "bayes=/exports/x"}
    assert command[:3] == ["vllm", "serve", trained.source.path]
    for pair in (
        ("--runner", "pooling"),
        ("--convert", "embed"),
        ("--dtype", "float32"),
        ("--pooler-config", '{"seq_pooling_type": "LAST"}'),
        ("--io-processor-plugin", "bayestune"),
        ("--lora-modules", "bayes=/exports/x/embed"),
    ):
        assert command[command.index(pair[0]) + 1] == pair[1]


def test_differences(check) -> None:
    one = {"label": "a", "probs": {"a": 0.7, "b": 0.3}, "entropy": 0.5, "id": 1}
    other = {"label": "b", "probs": {"a": 0.4, "b": 0.6}, "entropy": 0.6, "id": 1}
    gaps = check.largest([one, other], [one, one])
    assert gaps == pytest.approx({"probs": 0.3, "entropy": 0.1, "labels equal": 0.5})
    assert check.largest([{"mean": 1.0}], [{"mean": 3.0}]) == {"mean": 2.0}
