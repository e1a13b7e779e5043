"""A training of so many steps instead of epochs: what it runs, chooses and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from bayestune.errors import ConfigError
from bayestune.progress import silent
from bayestune.training import fit
from bayestune.training.choose import epochs_of
from bayestune.training.loop import Loop

#: 108 of 120 rows are trained on: 7 batches of 16 an epoch, the last of them of 12.
SIZE = 16


@pytest.fixture
def steps(monkeypatch) -> list[tuple[float, float, int]]:
    """Note κ, the share of the peak rate and the number of every step that is taken."""
    taken: list[tuple[float, float, int]] = []
    run = Loop.run_step

    def noting(loop, batch):
        taken.append((loop.kappa, loop.rate(loop.step), loop.step))
        return run(loop, batch)

    monkeypatch.setattr(Loop, "run_step", noting)
    return taken


def model_bytes(out: Path) -> bytes:
    return (out / "model" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(0, 4, 4), (7, 4, 1), (8, 4, 2), (21, 1, 3), (3, 9, 1)]
)
def test_epochs_of_so_many_steps(make, steps, epochs, expected) -> None:
    config = make(epochs=epochs, max_steps=steps, batch_size=SIZE).recipe.train
    assert epochs_of(config, 108) == expected


def test_the_schedule_ends_where_the_steps_do(make, clear, make_loop) -> None:
    loop = make_loop(make(), clear, epochs=3, batch_size=12, warmup=0.2, max_steps=25)
    assert (loop.steps_per_epoch, loop.total_steps) == (10, 25)
    seen = []
    for _ in range(3):
        seen.append(len(list(loop.batches())))
        loop.run_epoch(lambda count, note: None)
    assert seen == [10, 10, 5] and loop.step == 25
    rates = [loop.rate(step) for step in range(26)]
    assert rates[4] == 1 and rates[24] == pytest.approx(1 / 20) and rates[25] == 0


@pytest.mark.parametrize("count", [17, 5])
def test_a_fit_takes_so_many_steps(make, clear, steps, count) -> None:
    run = fit(make(epochs=1, max_steps=count, batch_size=SIZE), clear, progress=silent)
    assert [step for *_, step in steps] == list(range(count))
    assert len(run.history) == -(-count // 7)
    assert all("val_nll" in row for row in run.history)


def test_whole_epochs_are_the_same_bits(make, clear, tmp_path) -> None:
    fit(make(epochs=2, batch_size=SIZE), clear, out=tmp_path / "epochs", progress=silent)
    fit(
        make(epochs=9, max_steps=14, batch_size=SIZE),
        clear,
        out=tmp_path / "steps",
        progress=silent,
    )
    assert model_bytes(tmp_path / "epochs") == model_bytes(tmp_path / "steps")


@pytest.mark.parametrize(("count", "raced"), [(24, 14), (5, 5)])
def test_candidates_run_half_of_the_epochs_on_the_whole_schedule(
    make, clear, steps, count, raced
) -> None:
    run = fit(make(kl="auto", max_steps=count, batch_size=SIZE, warmup=0.0), clear, progress=silent)
    assert set(run.chosen["kl_tried"]) == {"1.0", "0.3", "0.1"}
    of = {kappa: [step for k, _, step in steps if k == kappa] for kappa in (1.0, 0.3, 0.1)}
    chosen = run.chosen["kl"]
    for kappa, taken in of.items():
        assert taken == list(range(count if kappa == chosen else raced))
    assert min(rate for _, rate, _ in steps) == pytest.approx(1 / (count - 1))


@pytest.mark.parametrize("examples", [130, 230])
def test_a_resumed_run_is_the_uninterrupted_one(make, clear, tmp_path, examples) -> None:
    # 17 steps: interrupted in the second epoch, and in the third, which has three steps.
    from test_resume import same_files, stop_after

    options = {"max_steps": 17, "batch_size": SIZE, "dropout": 0.1}
    fit(make(**options), clear, out=tmp_path / "whole", progress=silent)
    with pytest.raises(KeyboardInterrupt):
        fit(make(**options), clear, out=tmp_path / "run", progress=stop_after(examples))
    assert load_file(tmp_path / "run/checkpoint/tensors.safetensors")
    fit(make(**options), clear, out=tmp_path / "run", resume=True, progress=silent)
    same_files(tmp_path / "whole", tmp_path / "run")


def test_steps_are_not_negative(make) -> None:
    with pytest.raises(ConfigError, match=r"train.max_steps is -1; expected 0 or more"):
        make(max_steps=-1)
