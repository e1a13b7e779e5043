"""What is held out, which epoch is kept, when training stops."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from toy_tasks import topic_rows

from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.evaluation import evaluate
from bayestune.progress import silent
from bayestune.training import fit
from bayestune.training.choose import largest

#: Nothing is chosen or finished afterwards, so that the last validation is what is delivered.
BARE: dict[str, Any] = {"refresh": "none", "temperature": "none", "scale": 1.0}
#: Rates at which a point estimate overfits a few wrongly labelled rows within these epochs.
OVERFIT: dict[str, Any] = {**BARE, "kl": 0.0, "head_lr": 0.1, "lr": 1e-2, "epochs": 12}


@pytest.fixture(scope="module")
def noisy() -> tuple[Task, Task]:
    train = Task.from_rows(topic_rows(24, 1, wrong=0.4))
    return train, Task.from_rows(topic_rows(90, 2, wrong=0.4), like=train)


def test_without_validation_rows_a_stratified_slice_is_held_out(make, clear, tmp_path) -> None:
    run = fit(make(epochs=1), clear, out=tmp_path / "run", progress=silent, hold_out=0.2, seed=3)
    kept, out = clear.split(0.2, 3)
    facts = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (facts["train_hash"], facts["val_hash"]) == (kept.hash, out.hash)
    assert len(out) == 24 and out.class_counts == (8, 8, 8)
    assert "val_nll" in run.history[0]


def test_given_validation_rows_spare_the_training_rows(make, clear, clear_test, tmp_path) -> None:
    fit(make(epochs=1), clear, val=clear_test, out=tmp_path / "run", progress=silent)
    facts = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (facts["train_hash"], facts["val_hash"]) == (clear.hash, clear_test.hash)


def test_nothing_is_held_out_where_nothing_is_to_be_chosen(make, clear, tmp_path) -> None:
    options = {"refresh": "block", "precision": 1.0, "temperature": 1.5}
    run = fit(make(epochs=1, **options), clear, out=tmp_path / "run", progress=silent)
    facts = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (facts["train_hash"], facts["val_hash"]) == (clear.hash, None)
    assert "val_nll" not in run.history[0] and "best_epoch" not in run.chosen
    assert run.chosen["temperature"] == 1.5 and run.chosen["value"] == 1.0


def test_without_a_slice_to_choose_on_the_recipe_is_refused(make, clear) -> None:
    with pytest.raises(ConfigError, match="validation set"):
        fit(make(epochs=1, hold_out=0.0), clear, progress=silent)


def test_the_epoch_of_the_best_validation_is_kept(make, noisy) -> None:
    train, val = noisy
    models = {keep: make("mle", labels=train, **OVERFIT, keep=keep) for keep in ("best", "last")}
    runs = {k: fit(m, train, val=val, progress=silent) for k, m in models.items()}
    curve = [row["val_nll"] for row in runs["best"].history]
    assert curve == [row["val_nll"] for row in runs["last"].history]
    best = min(range(len(curve)), key=curve.__getitem__)
    assert best < len(curve) - 1 and curve[-1] > curve[best] + 0.05, "the recipe does not overfit"
    assert runs["best"].chosen["best_epoch"] == best + 1
    assert runs["best"].chosen["best_val_nll"] == curve[best]
    assert evaluate(models["best"], val).nll == pytest.approx(curve[best], rel=1e-5)
    assert evaluate(models["last"], val).nll == pytest.approx(curve[-1], rel=1e-5)


def test_patience_stops_a_run_that_no_longer_improves(make, noisy) -> None:
    train, val = noisy
    model = make("mle", labels=train, **OVERFIT)
    run = fit(model, train, val=val, progress=silent, patience=2, epochs=30)
    best = run.chosen["best_epoch"]
    assert len(run.history) == best + 2 < 30
    curve = [row["val_nll"] for row in run.history]
    assert curve[best - 1] == min(curve)
    assert evaluate(model, val).nll == pytest.approx(min(curve), rel=1e-5)


def test_a_given_kl_weight_is_used_and_an_open_one_chosen(make, noisy) -> None:
    train, val = noisy

    def chosen(method: str = "polar_vbll", **options: Any) -> float:
        model = make(method, labels=train, **{"epochs": 1, **options})
        return fit(model, train, val=val, progress=silent).chosen["kl"]

    assert chosen(kl=0.25) == 0.25
    assert chosen(kl="auto", epochs=3) > 0
    assert chosen("mle", kl="auto") == 0  # there is no posterior to weigh


def test_choosing_the_kl_weight_leaves_the_starting_point_alone(make, noisy) -> None:
    train, val = noisy
    options = {"labels": train, "epochs": 3}
    auto = make(kl="auto", **options)
    run = fit(auto, train, val=val, progress=silent)
    again = fit(make(kl=run.chosen["kl"], **options), train, val=val, progress=silent)
    assert again.history == run.history
    assert again.chosen["temperature"] == run.chosen["temperature"]


def test_the_run_records_what_it_did(make, clear, tmp_path) -> None:
    model = make(epochs=2)
    run = fit(model, clear, out=tmp_path / "run", progress=silent, lr=1e-3)
    assert run.out == tmp_path / "run" and run.seconds > 0
    assert run.recipe == model.recipe and run.recipe.train.lr == 1e-3
    assert yaml.safe_load((run.out / "recipe.yaml").read_text())["train"]["lr"] == 1e-3
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history and [row["epoch"] for row in lines] == [1, 2]
    for row in lines:
        assert row["orthogonality_error"] < 1e-4 and 1 <= row["stable_rank"] <= 4
        assert {"train_nll", "kl", "grad_norm", "val_nll", "val_accuracy"} <= row.keys()
    assert model.notes["chosen"] == run.chosen
    assert json.loads((run.out / "env.json").read_text())["torch"]


def losses(*means: float, spread: float, rows: int = 400) -> dict[float, torch.Tensor]:
    """Held-out losses of three κ with common noise, and a part of their own of this spread."""
    g = torch.Generator().manual_seed(0)
    common = torch.randn(rows, generator=g).double()
    own = [torch.randn(rows, generator=g).double() for _ in means]
    return {
        kappa: mean + common + spread * (noise - noise.mean())
        for kappa, mean, noise in zip((1.0, 0.3, 0.1), means, own, strict=True)
    }


def test_the_kl_weight_is_the_largest_that_is_not_clearly_worse() -> None:
    # The paired difference has a standard error of about 0.1 · √2 / 20 = 0.007.
    assert largest(losses(0.500, 0.498, 0.496, spread=0.1)) == 1.0
    assert largest(losses(0.530, 0.498, 0.496, spread=0.1)) == 0.3
    assert largest(losses(0.530, 0.520, 0.496, spread=0.1)) == 0.1
    assert largest(losses(0.490, 0.520, 0.530, spread=0.1)) == 1.0
    assert largest(losses(0.530, 0.520, 0.496, spread=2.0)) == 1.0  # too noisy to tell
    assert largest({1.0: torch.tensor([0.5]), 0.1: torch.tensor([0.4])}) == 0.1
