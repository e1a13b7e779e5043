"""NaN and infinity stop a training with its last good state, or are left out and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from bayestune.errors import NumericsError
from bayestune.model import BayesModel
from bayestune.progress import Advance, silent
from bayestune.store import load
from bayestune.training import fit
from bayestune.training.checkpoint import load_checkpoint

OPTIONS: dict[str, Any] = {"epochs": 3, "dropout": 0.1, "learn_prior": True}
STEPS = 7  # of an epoch of 108 rows


def break_layer(model: BayesModel, step: int) -> None:
    """Let a layer give NaN while training, from a step on."""
    calls = 0

    def spoil(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += model.backbone.training
        return output * float("nan") if model.backbone.training and calls > step else None

    model.backbone.layers[3].mlp.register_forward_hook(spoil)


def break_gradient(model: BayesModel, step: int, once: bool = False) -> str:
    """Let a gradient be infinite from a step on; return the parameter's name."""
    calls = 0

    def spoil(gradient: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        bad = calls == step + 1 if once else calls > step
        return gradient / 0 if bad else None

    name, parameter = next(
        (n, p) for n, p in model.backbone.named_parameters() if p.requires_grad and "layers.2." in n
    )
    parameter.register_hook(spoil)
    return name


@pytest.fixture(scope="module")
def whole(make, clear, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(make(**OPTIONS), clear, out=out, progress=silent)
    return out


def same(a: Path, b: Path) -> None:
    for name in ("model/adapter_model.safetensors", "model/posterior.safetensors", "metrics.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("step", [0, 3, 10])
@pytest.mark.parametrize("what", ["feature", "gradient"])
def test_it_stops_with_the_state_before_the_step(make, clear, whole, tmp_path, what, step) -> None:
    model, out = make(**OPTIONS), tmp_path / "run"
    if what == "feature":
        break_layer(model, step)
        layer = r"first in layers\.3\.mlp\)"
    else:
        layer = f"of {re.escape(break_gradient(model, step))}, is NaN"
    where = rf"at step {step} in epoch {1 + step // STEPS}; batch ids: (\d+, ){{15}}\d+\."
    with pytest.raises(NumericsError, match=rf"{layer}.*{where}.*checkpoint holds the state"):
        fit(model, clear, out=out, progress=silent)
    assert load_checkpoint(out / "checkpoint")[1]["step"] == step
    # Head, moments and random numbers are those of before: nothing of the step is left.
    fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)
    same(whole, out)


def test_a_run_that_was_stopped_goes_on_by_leaving_out(make, clear, tmp_path, caplog) -> None:
    model, out = make(**OPTIONS), tmp_path / "run"
    break_gradient(model, 4)
    with pytest.raises(NumericsError):
        fit(model, clear, out=out, progress=silent)
    again = make(**OPTIONS, nonfinite="skip")
    break_gradient(again, 0, once=True)
    run = fit(again, clear, out=out, resume=True, progress=silent)
    assert [row["skipped_batches"] for row in run.history] == [1, 0, 0]
    assert "a batch is left out: A gradient of the adapter's weights, of" in caplog.text
    assert "It was at step 4 in epoch 1; batch ids: " in caplog.text
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.history
    assert load(out).recipe.train.nonfinite == "skip"


def test_skipping_changes_nothing_where_all_is_finite(make, clear, whole, tmp_path) -> None:
    fit(make(**OPTIONS, nonfinite="skip"), clear, out=tmp_path / "run", progress=silent)
    name = "model/adapter_model.safetensors"
    assert (whole / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_an_epoch_without_a_step_is_no_training(make, clear, tmp_path) -> None:
    model = make(**OPTIONS, nonfinite="skip")
    break_layer(model, STEPS + 2)
    with pytest.raises(NumericsError, match="All 7 batches of epoch 3 were left out"):
        fit(model, clear, out=tmp_path / "run", progress=silent)


def test_broken_weights_are_not_left_out(make, clear, tmp_path) -> None:
    model = make(**OPTIONS, nonfinite="skip")
    adapter = next(p for p in model.backbone.parameters() if p.requires_grad)

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Advance]:
        def advance(count: int = 1, note: str = "") -> None:
            if label == "training" and count:
                adapter.data.fill_(float("nan"))

        yield advance

    with pytest.raises(NumericsError, match="at step 1 in epoch 1"):
        fit(model, clear, out=tmp_path / "run", progress=progress)
    assert not (tmp_path / "run" / "checkpoint").exists()
