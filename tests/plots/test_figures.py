"""Figures show the numbers they are given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bayestune.errors import ConfigError
from bayestune.evaluation import Evaluation, score
from bayestune.plots import (
    reliability_figure,
    risk_coverage_figure,
    save_figure,
    stable_rank_figure,
    unfamiliar_figure,
)
from bayestune.posterior.predictive import Predictive
from bayestune.prediction import Prediction

NAMES = ("a", "b", "c")


def some_prediction(rows: int, sharpness: float, seed: int) -> Prediction:
    noise = torch.randn(8, rows, 3, generator=torch.Generator().manual_seed(seed))
    return Prediction.of(Predictive.from_samples(sharpness * noise), NAMES)


@pytest.fixture(scope="module")
def evaluations() -> dict[str, Evaluation]:
    targets = torch.randint(3, (60,), generator=torch.Generator().manual_seed(3))
    outside = {"elsewhere": some_prediction(20, 0.5, 9)}
    return {
        name: score(some_prediction(60, sharpness, 1), targets, outside)
        for name, sharpness in (("sharp", 4.0), ("flat", 0.3))
    }


def test_reliability_draws_every_row_and_the_accuracy_of_its_bin(
    evaluations: dict[str, Evaluation],
) -> None:
    axes = reliability_figure(evaluations).axes
    assert len(axes) == 2
    for axis, evaluation in zip(axes, evaluations.values(), strict=True):
        assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(1)
        line = axis.lines[1]
        confidence, correct = evaluation.prediction.confidence, evaluation.prediction.indices
        for x, y in zip(*line.get_data(), strict=True):
            low = torch.ceil(torch.tensor(x * 15)).item() - 1
            inside = (confidence * 15 > low) & (confidence * 15 <= low + 1)
            hits = (correct == evaluation.targets)[inside].double().mean().item()
            assert y == pytest.approx(hits)
        assert f"ECE {evaluation.ece:.3f}" in axis.get_title()


def test_risk_ends_at_the_error_rate(evaluations: dict[str, Evaluation]) -> None:
    (axis,) = risk_coverage_figure(evaluations).axes
    for line, evaluation in zip(axis.lines, evaluations.values(), strict=True):
        assert line.get_xdata()[-1] == pytest.approx(1)
        assert line.get_ydata()[-1] == pytest.approx(1 - evaluation.accuracy)


def test_histograms_hold_all_rows_of_both_sets(evaluations: dict[str, Evaluation]) -> None:
    for axis in unfamiliar_figure(evaluations["sharp"], "elsewhere").axes:
        assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(2)


def test_stable_ranks_are_drawn_by_epoch() -> None:
    rows = [{"epoch": 1, "stable_rank": 1.5}, {"epoch": 2, "stable_rank": 2.5}]
    (axis,) = stable_rank_figure({"PoLAR": rows}).axes
    assert list(axis.lines[0].get_ydata()) == [1.5, 2.5]


def test_a_figure_is_written_by_its_suffix(
    evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    path = save_figure(risk_coverage_figure(evaluations), tmp_path / "new" / "risk.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in save_figure(risk_coverage_figure(evaluations), tmp_path / "a.svg").read_text()


def test_without_matplotlib_the_error_says_what_to_install(
    evaluations: dict[str, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"bayestune\[plots\]"):
        risk_coverage_figure(evaluations)
