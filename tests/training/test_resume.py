"""Same seed, same bits; interrupted and resumed, still the same bits."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bayestune.errors import StoreError
from bayestune.progress import Advance, silent
from bayestune.store import load
from bayestune.training import fit
from bayestune.training.checkpoint import load_checkpoint

OPTIONS: dict[str, Any] = {"epochs": 4, "dropout": 0.1, "learn_prior": True}
FILES = ("adapter_model.safetensors", "posterior.safetensors")


def stop_after(examples: int, label: str = "training") -> Callable[..., Any]:
    """A progress that interrupts, as Ctrl-C does, once so many examples are done."""

    @contextmanager
    def progress(at: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            if at == label and done >= examples:
                raise KeyboardInterrupt

        yield advance

    return progress


def interrupted(make, task, out: Path, examples: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(make(**{**OPTIONS, **options}), task, out=out, progress=stop_after(examples))


@pytest.fixture(scope="module")
def whole(make, clear, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(make(**OPTIONS), clear, out=out, progress=silent)
    return out


def same_files(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / "model" / name).read_bytes() == (b / "model" / name).read_bytes(), name
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    chosen = [json.loads((run / "model/bayestune.json").read_text())["notes"] for run in (a, b)]
    assert chosen[0] == chosen[1]


def test_the_same_seed_gives_the_same_files(make, clear, whole, tmp_path) -> None:
    model = make(**OPTIONS)
    torch.rand(7)  # whatever was drawn before does not matter
    fit(model, clear, out=tmp_path / "again", progress=silent)
    same_files(whole, tmp_path / "again")


def test_another_seed_gives_others(make, clear, whole, tmp_path) -> None:
    fit(make(seed=1, **OPTIONS), clear, out=tmp_path / "other", progress=silent)
    ours, other = (load_file(run / "model" / FILES[0]) for run in (whole, tmp_path / "other"))
    assert ours.keys() == other.keys()
    assert not any(torch.equal(ours[key], other[key]) for key in ours)


def test_a_seed_given_to_fit_orders_the_batches(make, clear, whole, tmp_path) -> None:
    fit(make(**OPTIONS), clear, out=tmp_path / "other", seed=1, progress=silent)
    metrics = [(run / "metrics.jsonl").read_text() for run in (whole, tmp_path / "other")]
    assert metrics[0] != metrics[1]
    assert load(tmp_path / "other").recipe.seed == 1


@pytest.mark.parametrize(
    ("number", "label", "examples", "step"),
    [
        (signal.SIGINT, "training", 130, 9),
        (signal.SIGTERM, "training", 16, 1),
        (signal.SIGINT, "choosing the KL weight", 130, 9),
    ],
)
def test_a_signal_ends_it_after_the_step_with_the_state_kept(
    make, clear, whole, tmp_path, number, label, examples, step
) -> None:
    options = {**OPTIONS, "kl": "auto"} if label != "training" else OPTIONS
    if label != "training":
        whole = tmp_path / "whole"
        fit(make(**options), clear, out=whole, progress=silent)
    come = False

    @contextmanager
    def progress(at: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, come
            done += count
            if at == label and done >= examples and not come:
                come = True
                signal.raise_signal(number)
                assert done < examples + 32, "the step after it was not taken"

        yield advance

    def terminate(*_: Any) -> None:
        raise KeyboardInterrupt

    out, before = tmp_path / "run", signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(make(**options), clear, out=out, progress=progress)
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    (state,) = [path for path in (out / "checkpoint", *out.glob("race/*")) if path.is_dir()]
    assert load_checkpoint(state)[1]["step"] == step
    fit(make(**options), clear, out=out, resume=True, progress=silent)
    same_files(whole, out)


@pytest.mark.parametrize("examples", [130, 216, 300])
def test_a_resumed_run_is_the_uninterrupted_one(make, clear, whole, tmp_path, examples) -> None:
    # 108 rows are trained on: in the second epoch, at the very end of it, in the third.
    out = tmp_path / "run"
    interrupted(make, clear, out, examples)
    assert (out / "checkpoint").is_dir() and not (out / "model").exists()
    torch.rand(5)
    run = fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    same_files(whole, out)
    assert not (out / "checkpoint").exists()


def test_a_run_that_keeps_its_last_epoch_resumes_without_its_best(make, clear, tmp_path) -> None:
    options = {**OPTIONS, "keep": "last"}
    fit(make(**options), clear, out=tmp_path / "whole", progress=silent)
    interrupted(make, clear, tmp_path / "run", 216, **options)
    kept = load_checkpoint(tmp_path / "run" / "checkpoint")[0]
    assert not any(name.startswith("best.") for name in kept)
    fit(make(**options), clear, out=tmp_path / "run", resume=True, progress=silent)
    same_files(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("kind", ["generative", "ordinal"])
def test_heads_of_other_likelihoods_resume_too(make, clear, levels, tmp_path, kind) -> None:
    # A joint generative head has as many axes as its rows allow, and so has its checkpoint.
    task, head = clear, {"kind": kind, "joint": True}
    if kind == "ordinal":
        task, head = levels, {"kind": kind}
    options = {**OPTIONS, "head": head, "epochs": 3}
    fit(make(labels=task, **options), task, out=tmp_path / "whole", progress=silent)
    interrupted(make, task, tmp_path / "run", 150, labels=task, **options)
    fit(make(labels=task, **options), task, out=tmp_path / "run", resume=True, progress=silent)
    same_files(tmp_path / "whole", tmp_path / "run")


def test_it_may_be_interrupted_more_than_once(make, clear, whole, tmp_path) -> None:
    out = tmp_path / "run"
    interrupted(make, clear, out, 130)
    with pytest.raises(KeyboardInterrupt):
        fit(make(**OPTIONS), clear, out=out, resume=True, progress=stop_after(240))
    fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)
    same_files(whole, out)


def test_interrupted_before_the_first_epoch_it_starts_anew(make, clear, whole, tmp_path) -> None:
    out = tmp_path / "run"
    interrupted(make, clear, out, 20)
    assert not (out / "checkpoint").exists()
    fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)
    same_files(whole, out)


def test_a_chosen_kl_weight_is_not_chosen_again(make, clear, tmp_path) -> None:
    out = tmp_path / "run"
    options = {**OPTIONS, "kl": "auto", "epochs": 3}
    fit(make(**options), clear, out=tmp_path / "whole", progress=silent)
    interrupted(make, clear, out, 130, **options)
    never = stop_after(0, label="choosing the KL weight")
    fit(make(**options), clear, out=out, resume=True, progress=never)
    same_files(tmp_path / "whole", out)


@pytest.mark.parametrize("examples", [20, 130, 340, 500])
def test_a_race_continues_where_it_was_interrupted(make, clear, tmp_path, examples) -> None:
    # Three candidates of two epochs of 108 rows each: before the first state, in the first
    # candidate, in the second, in the third.
    options = {**OPTIONS, "kl": "auto"}
    fit(make(**options), clear, out=tmp_path / "whole", progress=silent)
    out, race = tmp_path / "run", "choosing the KL weight"
    with pytest.raises(KeyboardInterrupt):
        fit(make(**options), clear, out=out, progress=stop_after(examples, label=race))
    reached = examples // 108
    assert len(list((out / "race").glob("*"))) == (reached + 1) // 2
    done = 0

    @contextmanager
    def watched(at: str, total: int) -> Iterator[Advance]:
        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += at == race and count < 100

        yield advance

    torch.rand(5)
    fit(make(**options), clear, out=out, resume=True, progress=watched)
    same_files(tmp_path / "whole", out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    # Only what was missing is trained: 6 epochs of 7 batches, less what was kept.
    assert done == (6 - reached) * 7


def test_an_interrupted_replacement_is_no_finished_run(make, clear, tmp_path, caplog) -> None:
    out = tmp_path / "run"
    fit(make(kl=1.0, epochs=1), clear, out=out, progress=silent)
    earlier = (out / "model" / FILES[0]).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fit(make(**OPTIONS), clear, out=out, overwrite=True, progress=stop_after(20))
    # The earlier model is still there, and says what it is.
    assert (out / "model" / FILES[0]).read_bytes() == earlier
    load(out)
    assert "is the model of an earlier run" in caplog.text
    caplog.clear()
    fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)
    assert "holds no state to continue from; the run starts anew" in caplog.text
    caplog.clear()
    load(out)
    assert not caplog.text
    with pytest.raises(StoreError, match="finished run"):
        fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)


def test_the_callers_random_numbers_are_left_alone(make, clear) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(make(dropout=0.1, kl=1.0, epochs=1), clear, progress=silent)
    assert torch.equal(torch.rand(3), expected)


def test_a_joint_run_of_a_point_method_resumes_too(make, clear, tmp_path) -> None:
    options = {"schedule": "joint", "kl": 0.0, "epochs": 3}
    fit(make("mle", **options), clear, out=tmp_path / "whole", progress=silent)
    with pytest.raises(KeyboardInterrupt):
        fit(make("mle", **options), clear, out=tmp_path / "run", progress=stop_after(150))
    fit(make("mle", **options), clear, out=tmp_path / "run", resume=True, progress=silent)
    same_files(tmp_path / "whole", tmp_path / "run")


# what cannot be resumed -------------------------------------------------------------------------


def test_other_data_or_another_recipe_is_refused_and_changes_nothing(
    make, clear, clear_test, whole, tmp_path
) -> None:
    out = tmp_path / "run"
    interrupted(make, clear, out, 130)
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    with pytest.raises(StoreError, match="belongs to a run with another data; resume with the sam"):
        fit(make(**OPTIONS), clear_test, out=out, resume=True, progress=silent)
    with pytest.raises(StoreError, match="another recipe"):
        fit(make(**{**OPTIONS, "lr": 1e-4}), clear, out=out, resume=True, progress=silent)
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)
    same_files(whole, out)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "state", "keys"])
def test_a_damaged_checkpoint_is_refused(make, clear, tmp_path, damage) -> None:
    out = tmp_path / "run"
    interrupted(make, clear, out, 130)
    tensors = out / "checkpoint" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-5] ^= 1
    if damage == "flip":
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(content[:-100])
    elif damage == "remove":
        tensors.unlink()
    else:
        content = '{"step": 1' if damage == "state" else '{"step": 1}'
        (out / "checkpoint" / "state.json").write_text(content)
    with pytest.raises(StoreError, match=r"damaged|missing"):
        fit(make(**OPTIONS), clear, out=out, resume=True, progress=silent)


def test_a_finished_run_is_neither_resumed_nor_overwritten_by_chance(make, clear, whole) -> None:
    before = {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}
    with pytest.raises(StoreError, match="holds a finished run; there is nothing to resume"):
        fit(make(**OPTIONS), clear, out=whole, resume=True, progress=silent)
    with pytest.raises(StoreError, match="already holds a run; give another folder, --resume"):
        fit(make(**OPTIONS), clear, out=whole, progress=silent)
    assert {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()} == before


def test_an_unfinished_run_is_not_overwritten_by_chance_either(make, clear, tmp_path) -> None:
    interrupted(make, clear, tmp_path / "run", 130)
    with pytest.raises(StoreError, match="already holds a run"):
        fit(make(**OPTIONS), clear, out=tmp_path / "run", progress=silent)


def test_overwriting_leaves_nothing_of_the_earlier_run(make, clear, whole, tmp_path) -> None:
    out = tmp_path / "run"
    fit(make(**{**OPTIONS, "lr": 1e-4}), clear, out=out, progress=silent)
    earlier = (out / "model" / FILES[0]).read_bytes()
    # Until the new run is complete the earlier model is the one that is loaded.
    with pytest.raises(KeyboardInterrupt):
        fit(make(**OPTIONS), clear, out=out, overwrite=True, progress=stop_after(130))
    assert (out / "model" / FILES[0]).read_bytes() == earlier
    load(out)
    fit(make(**OPTIONS), clear, out=out, overwrite=True, progress=silent)
    same_files(whole, out)
    assert sorted(f.name for f in out.iterdir()) == sorted(f.name for f in whole.iterdir())
