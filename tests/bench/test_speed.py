"""The benchmarks of speed run, and say what they measured; how fast is not tested here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.speed import (
    draws,
    end_to_end,
    growth,
    many_classes,
    measure,
    predictive,
    refit,
    seven_billion,
    step,
    stiefel,
    table,
    texts,
    throughput,
)
from bench.speed.measure import Row

RUNS = {
    "predictive": lambda base: predictive.run("cpu", base, 1),
    "step": lambda base: step.run("cpu", base, 1),
    "seven_billion": lambda base: seven_billion.run("cpu", base, 1, TINY),
    "stiefel": lambda base: stiefel.run("cpu", base, 1),
    "end_to_end": lambda base: end_to_end.run("cpu", base, 1, 2, 2),
    "throughput": lambda base: throughput.run("cpu", base, 1),
    "draws": lambda base: draws.run("cpu", base, 2),
    "refit": lambda base: refit.run("cpu", base, 1, 300, 16)[:1],
    "many_classes": lambda base: many_classes.run("cpu", base, 1, 20, 16),
    "growth": lambda base: growth.run("cpu", base, 1, small=True),
}
SIZES = {
    end_to_end: {"TRAIN": 16, "TEST": 16, "BATCH": 8},
    throughput: {"TEXTS": 8},
    draws: {"TEXTS": 4, "SAMPLES": 3},
    stiefel: {"SHAPES": ((32, 4),)},
    step: {"BATCH": 4, "STEPS": 2},
    growth: {"WIDE": 16, "ROWS": 64, "FEATURES": 8},
    predictive: {"BATCH": 4, "CLASSES": (3,)},
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", RUNS)
def test_a_target_is_measured(name, llama_base, monkeypatch) -> None:
    monkeypatch.setattr(texts, "MEDIAN", 4)
    for module, sizes in SIZES.items():
        for size, value in sizes.items():
            monkeypatch.setattr(module, size, value)
    rows = RUNS[name](str(llama_base))
    assert rows and all(isinstance(row, Row) and row.value == row.value for row in rows)
    if name not in ("growth", "many_classes"):
        assert all(row.value > 0 for row in rows)


def test_ratios_are_of_the_same_turn() -> None:
    times = {"a": [1.0, 10.0, 100.0], "b": [2.0, 30.0, 50.0]}
    assert measure.ratio(times, "a", "b") == 0.5
    found = measure.interleaved({"a": lambda: None, "b": lambda: None}, 3, "cpu")
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}


def test_the_peak_is_that_of_the_run() -> None:
    import torch

    before, most = measure.peak(lambda: torch.ones(10_000_000).sum(), "cpu")
    assert 35 < most - before < 80  # 40 MB


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(1.0, "≤ 1.02", True), (1.03, "≤ 1.02", False), (2.0, "≥ 2", True), (1.9, "≥ 2", False)],
)
def test_targets(value, target, met) -> None:
    assert Row("x", value, "×", target).met is met
    assert Row("x", value, "×").met is None


def test_the_page_says_what_was_not_measured(tmp_path) -> None:
    row = {"what": "it", "value": 1.234, "unit": "×", "target": "≤ 1", "met": False, "limit": "1"}
    environment = dict.fromkeys(("bayestune", "torch", "transformers", "peft", "machine"), "0")
    data = {"rows": [row], "command": "x --threads 1", "device": "CPU", "environment": environment}
    (tmp_path / "step.cpu.json").write_text(json.dumps(data))
    page = tmp_path / "page.md"
    table.write(page, tmp_path, ("step", "draws"), {"draws": "cuda"})
    cpu, gpu = page.read_text().split("## On a GPU")
    assert "| it | 1.23 × | ≤ 1 | **missed** | 1 |" in cpu and "Not measured" not in cpu
    assert "Not measured: step, draws." in gpu
