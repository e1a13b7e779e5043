"""What a run logs elsewhere: all of it, kept apart, and never at the price of the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from fake_trackers import install
from test_resume import OPTIONS, same_files, stop_after

from bayestune.errors import ConfigError
from bayestune.progress import silent
from bayestune.training import fit, wanted


def numbers(row) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, int | float)}


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_every_epoch_and_the_end_arrive(name, make, clear, tmp_path, monkeypatch) -> None:
    fake = install(monkeypatch, name)
    model = make(epochs=3)
    run = fit(model, clear, out=tmp_path / "run", track=name, progress=silent)
    (found,) = fake.runs
    assert found.calls == ["start", "config", *["log"] * 4, "finish"]
    rows = [(None if name == "wandb" else row["epoch"], numbers(row)) for row in run.history]
    assert found.under("") == rows
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [numbers(json.loads(line)) for line in lines] == [row for _, row in rows]
    ((_, final),) = found.under("final/")
    assert final["kl"] == 1.0 and final["best_val_nll"] == run.chosen["best_val_nll"]
    assert found.config["method"] == "polar_vbll" and found.config["train.epochs"] == 3
    assert found.config["train_rows"] + found.config["val_rows"] == 120
    assert found.config["train_hash"] == model.notes["data"]["train_hash"]
    assert all(isinstance(v, str | int | float) for v in found.config.values())
    assert found.project == "bayestune"
    assert found.run_name == "run"
    tags = {"wandb": ["bayestune", "polar_vbll", "classification"], "trackio": None}
    expected = tags.get(name, dict.fromkeys(tags["wandb"], "true"))
    assert found.options.get("tags") == expected
    # wandb's own steps only rise: there the epoch is an axis.
    axes = {k: "epoch" for _, row in rows for k in row} | {
        f"final/{k}": "final/epoch" for k in final
    }
    assert found.axes == (axes if name == "wandb" else {})


def test_candidates_for_the_kl_weight_are_kept_apart(make, clear, tmp_path, monkeypatch) -> None:
    fake = install(monkeypatch, "trackio")
    run = fit(
        make(kl="auto", epochs=4), clear, out=tmp_path / "r", track="trackio", progress=silent
    )
    (found,) = fake.runs
    kappas = sorted(run.chosen["kl_tried"])
    assert len(kappas) > 1
    for kappa in kappas:
        rows = found.under(f"race/kl_{float(kappa):g}/".replace(".", "_"))
        assert [step for step, _ in rows] == [1, 2]
    chosen = found.under(f"race/kl_{run.chosen['kl']:g}/".replace(".", "_"))
    assert found.under("")[:2] == chosen and len(chosen) == 2
    assert not [key for _, row in found.rows for key in row if "." in key]
    assert found.under("") == [(row["epoch"], numbers(row)) for row in run.history]


def test_members_of_an_ensemble_are_kept_apart(make, clear, monkeypatch) -> None:
    fake = install(monkeypatch, "trackio")
    model = make("ensemble", weights={"members": 2}, epochs=2)
    run = fit(model, clear, track="trackio", progress=silent)
    (found,) = fake.runs
    for member in range(2):
        rows = [row for row in run.history if row.get("member", 0) == member]
        assert len(rows) == 2
        assert found.under(f"member_{member}/") == [(r["epoch"], numbers(r)) for r in rows]
    assert not found.under("")
    assert found.run_name == "ensemble-0"


def test_a_resumed_run_is_logged_from_its_start(make, clear, tmp_path, monkeypatch) -> None:
    fake = install(monkeypatch, "trackio")
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(make(**OPTIONS), clear, out=out, track="trackio", progress=stop_after(230))
    run = fit(make(**OPTIONS), clear, out=out, track="trackio", resume=True, progress=silent)
    first, second = fake.runs
    assert [step for step, _ in first.under("")] == [1, 2]
    assert first.calls[-1] == "finish"
    assert second.under("") == [(row["epoch"], numbers(row)) for row in run.history]


def test_a_call_that_fails_is_told_once_and_changes_nothing(
    make, clear, tmp_path, monkeypatch, caplog
) -> None:
    fit(make(epochs=3), clear, out=tmp_path / "plain", progress=silent)
    fake = install(monkeypatch, "trackio", "log", "finish")
    with caplog.at_level(logging.WARNING, "bayestune"):
        fit(make(epochs=3), clear, out=tmp_path / "run", track="trackio", progress=silent)
    (warning,) = [r.getMessage() for r in caplog.records if "trackio" in r.getMessage()]
    assert "training goes on" in warning and "RuntimeError: no connection to log" in warning
    assert "second line" not in warning
    assert fake.runs[0].calls.count("log") == 4  # it is given another chance every time
    same_files(tmp_path / "plain", tmp_path / "run")


@pytest.mark.parametrize("where", ["start", "config"])
def test_what_cannot_be_started_stops_before_training(
    where, make, clear, tmp_path, monkeypatch
) -> None:
    good, bad = install(monkeypatch, "trackio"), install(monkeypatch, "wandb", where)
    monkeypatch.setattr("bayestune.training.trackers.find_spec", lambda name: name)
    steps = []
    monkeypatch.setattr("bayestune.training.loop.Loop.run_step", lambda *_: steps.append(1))
    said = rf"wandb could not be started: RuntimeError: no connection to {where}\. Nothing .*WANDB_"
    with pytest.raises(ConfigError, match=said):
        fit(make(), clear, out=tmp_path / "run", track=["trackio", "wandb"], progress=silent)
    assert not steps and not (tmp_path / "run").exists()
    assert good.runs[0].calls[-1] == "finish"
    assert ("finish" in bad.runs[0].calls) == (where == "config")


def test_names_are_checked_first(make, clear, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bayestune.training.trackers.find_spec", lambda n: n != "wandb" or None)
    assert wanted("tensorboard, mlflow,tensorboard") == ("tensorboard", "mlflow")
    assert wanted(["trackio", "mlflow"]) == ("trackio", "mlflow")
    assert wanted(()) == ()
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        wanted("tensorbord")
    with pytest.raises(ConfigError, match=r"wandb is not installed.*pip install wandb"):
        wanted("wandb")
    with pytest.raises(ConfigError, match=r"tensorboard keeps its files .* give out"):
        fit(make(), clear, track="tensorboard", progress=silent)


# torch's writer takes what numpy deprecates, and accelerate's asks for a type by an old name.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_can_be_read_back(make, clear, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    for _ in range(2):  # the second replaces the files of the first
        run = fit(
            make(epochs=3), clear, out=out, track="tensorboard", overwrite=True, progress=silent
        )
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    for key in ("train_nll", "val_nll", "val_accuracy", "stable_rank", "kl"):
        found = [(e.step, e.value) for e in events.Scalars(key)]
        expected = [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in run.history]
        assert found == expected
    (final,) = events.Scalars("final/best_val_nll")
    assert final.value == pytest.approx(run.chosen["best_val_nll"], rel=1e-6)
    (recipe,) = Path(out / "tensorboard").rglob("hparams.yml")
    assert "train.epochs: 3" in recipe.read_text()
