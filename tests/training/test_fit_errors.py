"""Bad input to a fit: one clear sentence, and what was written stays usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from number_tasks import number_task
from toy_tasks import choice_rows, topic_rows

from bayestune.cli.estimate import estimate
from bayestune.data import Task
from bayestune.errors import ConfigError, DataError, NumericsError, StoreError
from bayestune.finalize import require_possible
from bayestune.model import BayesModel
from bayestune.progress import Advance, silent
from bayestune.training import fit
from bayestune.training.checkpoint import load_checkpoint


def test_rows_of_one_class_are_refused(make, clear) -> None:
    alone = clear.select([i for i in range(len(clear)) if clear[i].label == 1])
    with pytest.raises(DataError, match="all training rows are of one class; a classifier needs"):
        fit(make(), alone, progress=silent)


@pytest.mark.parametrize("part", ["train", "val"])
def test_rows_without_a_label_are_named(make, clear, part) -> None:
    rows = [{"text": e.text, "label": clear.labels[e.label], "id": f"row-{i}"}
            for i, e in enumerate(clear)]  # fmt: skip
    del rows[17]["label"]
    gappy = Task.from_rows(rows, like=clear, require_labels=False)
    given = {"train": clear, "val": clear, part: gappy}
    with pytest.raises(DataError, match="the row with id 'row-17' has no label"):
        fit(make(), progress=silent, **given)


@pytest.mark.parametrize("part", ["train", "val"])
def test_other_classes_than_the_models_are_refused(make, clear, part) -> None:
    two = Task.from_rows(topic_rows(20, topics=("login", "parcel")))
    given = {"train": clear, "val": clear, part: two}
    with pytest.raises(DataError, match=r"\['login', 'parcel'\], the model has \['login', 'parce"):
        fit(make(), progress=silent, **given)


def test_another_kind_of_task_is_refused(make) -> None:
    choice = Task.from_rows(choice_rows(12, choices=(3,)))
    model = make(labels=["A", "B", "C"])
    with pytest.raises(
        DataError, match=r"reads classification tasks; .* is choice. Build it with labels=train"
    ):
        fit(model, choice, progress=silent)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, "unknown key epoch. Did you mean 'epochs'"),
        ({"epochs": 0}, "train.epochs is 0; expected at least 1"),
        ({"lr": "fast"}, "train.lr is 'fast'; expected a finite number"),
        ({"rank": 4}, "adapter is fixed when a model is built: give it to build"),
        ({"dtype": "float32"}, "dtype is fixed when a model is built"),
        ({"schedule": "both"}, "train.schedule is 'both'; expected 'alternate' or 'joint'"),
    ],
)
def test_wrong_overrides_are_refused_before_anything_happens(
    make, clear, tmp_path, overrides, message
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(make(), clear, out=tmp_path / "run", progress=silent, **overrides)
    assert not (tmp_path / "run").exists()


def test_resuming_needs_a_folder(make, clear) -> None:
    with pytest.raises(ConfigError, match="resume needs the folder of the run to continue"):
        fit(make(), clear, resume=True, progress=silent)


def test_a_run_that_cannot_be_written_says_where(make, clear, tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"file/run/\w+ could not be written"):
        fit(make(), clear, out=tmp_path / "file" / "run", progress=silent)


def poison_after(examples: int, spoil: Callable[[], None]) -> Any:
    @contextmanager
    def progress(label: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            if label == "training" and done >= examples:
                spoil()

        yield advance

    return progress


@pytest.mark.parametrize(
    ("where", "message"), [("head", "The loss is nan in the head"), ("adapter", "Features of rows")]
)
def test_numbers_that_break_down_leave_the_last_checkpoint(
    make, clear, tmp_path, where, message
) -> None:
    out = tmp_path / "run"
    model: BayesModel = make()

    def spoil() -> None:
        parts = model.head if where == "head" else model.backbone
        parameter = next(p for p in parts.parameters() if p.requires_grad)
        with torch.no_grad():
            parameter.fill_(float("nan"))

    with pytest.raises(NumericsError, match=message):
        fit(model, clear, out=out, progress=poison_after(150, spoil))
    tensors, state = load_checkpoint(out / "checkpoint")
    assert state["epoch"] == 1
    assert all(bool(torch.isfinite(t).all()) for n, t in tensors.items() if n.startswith("now."))
    run = fit(make(), clear, out=out, resume=True, progress=silent)
    assert len(run.history) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh": "full", "predictive": "exact"}, "predictive=exact integrates independent"),
        ({"refresh": "full"}, "refresh=full would decompose"),
        ({"groups": "class"}, "groups=class gives precisions to the mode"),
        ({"groups": "class", "precision": "evidence", "refit": "mode"}, "dense block of"),
        ({"head": {"kind": "generative"}, "refresh": "full"}, "covariance of a linear layer"),
    ],
)
def test_a_finish_that_cannot_be_had_is_refused_before_training(
    make, clear, tmp_path, monkeypatch, options, message
) -> None:
    if options != {"refresh": "full", "predictive": "exact"}:
        monkeypatch.setattr("bayestune.finalize.refresh.FULL_LIMIT", 9)
        monkeypatch.setattr("bayestune.finalize.checks.BLOCK_LIMIT", 9)
    with pytest.raises(ConfigError, match=message):
        fit(make(**options), clear, out=tmp_path / "run", progress=silent)
    assert not (tmp_path / "run").exists()


GENERATIVE = {"kind": "generative"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": GENERATIVE, "refit": "mode"}, "refit=mode would do nothing: .* exact"),
        ({"head": GENERATIVE, "precision": 1.0}, "precision=1.0 would do nothing: .* exact"),
        ({"head": GENERATIVE, "scale": 0.5}, "scale=0.5 would do nothing: .* exact"),
        ({"head": GENERATIVE, "groups": "class"}, "groups=class would do nothing: .* exact"),
        ({"head": {**GENERATIVE, "joint": True, "bound": "exact"}}, "bound=exact would do nothing"),
        ({"head": {**GENERATIVE, "joint": True, "covariance": "eigen"}}, "covariance=eigen would"),
        ({"head": {**GENERATIVE, "bound": "exact"}, "kl": 0.0}, "bound=exact would do nothing"),
        ({"head": {"kind": "ordinal", "bound": "tilted"}}, "bound=tilted would do nothing"),
        ({"head": {"kind": "ordinal", "covariance": "dense"}, "kl": 0.0}, "covariance=dense would"),
        ({"head": {"kind": "linear", "covariance": "dense"}}, "covariance=dense would do nothing"),
        ({"head": {"joint": True}}, "joint=true would do nothing: .* head.kind=generative"),
        ({"head": {"axes": 7}}, "axes=7 would do nothing: .* head.kind=generative"),
        ({"refit": "ascent", "precision": 1.0}, "precision=1.0 would do nothing: .*refit=ascent"),
        ({"refresh": "none", "precision": "evidence"}, "precision=evidence would .*refresh=none"),
        ({"head": {"kind": "linear"}, "refit": "mode"}, "refit=mode would do nothing: a point"),
        ({"head": {"kind": "linear"}, "refresh": "none", "kl": 0.5}, "kl=0.5 would do nothing"),
        (
            {"head": {"kind": "ordinal"}, "predictive": "probit"},
            "predictive=probit would do nothing",
        ),
        ({"head": GENERATIVE, "predictive": "probit"}, "predictive=probit would do nothing"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_before_training(
    make, levels, tmp_path, options, message
) -> None:
    model = make(labels=levels, **options)
    for refuse in (
        lambda: fit(model, levels, out=tmp_path / "run", progress=silent),
        lambda: estimate(model, levels, None),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"head": {**GENERATIVE, "bound": "tilted", "covariance": "eigen", "axes": 5}},
        {"head": {"kind": "ordinal", "covariance": "eigen"}, "refit": "mode", "precision": 1.0},
        {"head": {"kind": "linear"}, "refresh": "block", "precision": 1.0, "refit": "mode"},
        {"refit": "ascent", "scale": 1.0},
        {"predictive": "probit"},
        {"head": {"kind": "linear"}, "refresh": "block", "predictive": "exact", "kl": 0.0},
        {"method": "laplace_lora", "predictive": "probit"},
    ],
)
def test_an_option_that_does_something_is_taken(make, levels, options) -> None:
    model = make(**{"labels": levels, **options})
    require_possible(model.recipe, model.head, len(levels), model.backbone.weights)


@pytest.mark.parametrize(
    ("method", "option"),
    [("mle", "kl"), ("tfb", "kl"), ("blob", "predictive"), ("mle", "predictive")],
)
def test_what_a_method_has_no_use_for_is_refused(make, clear, method, option) -> None:
    value = {"kl": 0.5, "predictive": "probit"}[option]
    with pytest.raises(ConfigError, match=f"{option}={value} would do nothing"):
        fit(make(method, **{option: value}), clear, progress=silent)


def test_numbers_refuse_the_finish_of_classes_before_training(make, tmp_path) -> None:
    task = number_task(60)
    with pytest.raises(ConfigError, match="about classes"):
        fit(make(labels=task, refit="ascent"), task, out=tmp_path / "run", progress=silent)
    assert not (tmp_path / "run").exists()


def test_choices_without_held_out_rows_are_refused_before_training(make, clear) -> None:
    with pytest.raises(
        ConfigError, match=r"train.kl=auto, .* are chosen on held-out rows, and there are none"
    ):
        fit(make(), clear, hold_out=0.0, kl="auto", progress=silent)
    evidence = {"precision": "evidence", "temperature": "none", "hold_out": 0.0, "epochs": 1}
    with pytest.raises(ConfigError) as error:
        fit(make(), clear, **evidence, progress=silent)
    assert str(error.value).startswith(
        "finalize.refresh=auto (whether the trained covariance stays; by name it goes), "
        "finalize.scale=auto (of the trained covariance) are chosen on held-out rows"
    )
    with pytest.raises(ConfigError, match=r"^train.patience is chosen on held-out rows"):
        fit(make(), clear, **evidence, refresh="block", patience=2, progress=silent)
    fit(make(), clear, **evidence, refresh="block", progress=silent)
