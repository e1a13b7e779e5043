"""A real benchmark on a tiny model: resumed, broken off, diverging."""

from __future__ import annotations

import copy
import importlib
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from bench_checks import made_cell, numbers

from bayestune import bench, methods
from bayestune.backbone import resolve
from bayestune.bench import Bench, Key, read, read_suite, run
from bayestune.bench.cell import MODEL, read_arrays
from bayestune.errors import ConfigError, DataError
from bayestune.methods.cost import cost
from bayestune.store import load

LOW, HIGH = 1e-3, 2e-2


def cells_of(plan):
    return {key: read(key, plan.out) for task in plan.tasks for key in plan.written(task)}


def test_all_trainings_are_done(complete):
    ready, done = complete.todo()
    assert (ready, done) == ([], complete.total)
    cells = cells_of(complete)
    assert len(cells) == complete.total
    chosen = complete.rate("topics", "mle")
    tried = {lr: cells[Key("topics", "mle", 0, lr)].val_nll for lr in (LOW, HIGH)}
    assert chosen == min(tried, key=tried.__getitem__)
    for key, cell in cells.items():
        assert cell.key == key
        assert cell.error == ""
        # Test rows are read for the rate that was chosen, and for no other.
        assert cell.measured == (key.lr == complete.rate("topics", key.row))
        assert not cell.measured or cell.metrics["nll"] > 0
        assert cell.recipe["train"]["lr"] == key.lr
        assert cell.recipe["seed"] == key.seed
        assert cell.rows["train"] == 45 and cell.rows["val"] == 20 and cell.rows["test"] == 40
        assert cell.rows["ood"] == {"foreign": 12}
        assert cell.rates == [LOW, HIGH] if key.row != "polar_vbll" else [4e-3, HIGH]
        assert not cell.measured or cell.cost["predict_rows"] == 40
    # Learnt, and not by chance: three topics, a fifth of the test labels are wrong.
    best = Key("topics", "borrowed", 0, chosen)
    assert cells[best].metrics["accuracy"] > 0.5


def test_a_row_that_starts_from_another(complete):
    lr = complete.rate("topics", "mle")
    for seed in (0, 1):
        first = read(Key("topics", "mle", seed, lr), complete.out)
        cell = read(Key("topics", "cooled", seed, lr), complete.out)
        assert cell.chosen["started_from"]["method"] == "mle"
        assert cell.metrics["accuracy"] == first.metrics["accuracy"]  # one temperature for all
        assert cell.val_nll <= first.val_nll + 1e-6
        assert cell.seconds > first.seconds
        assert cell.history == []


def test_models_are_kept_where_others_start(complete):
    kept = {key for key in cells_of(complete) if (key.folder(complete.out) / MODEL).is_dir()}
    chosen = complete.rate("topics", "mle")
    assert kept == {key for key in cells_of(complete) if (key.row, key.lr) == ("mle", chosen)}
    key = Key("topics", "mle", 1, complete.rate("topics", "mle"))
    assert load(key.folder(complete.out) / MODEL).predict(["my parcel"]).probs.shape == (1, 3)


def test_what_is_trained_and_stored_is_counted(complete):
    for key, cell in cells_of(complete).items():
        recipe = complete.suite.recipe_of("topics", key.row)
        method = methods.get(recipe.method)
        expected = cost(method, recipe, resolve(recipe.model), classes=3)
        assert (cell.cost["trained"], cell.cost["stored"]) == (expected.trained, expected.stored)
    assert expected.stored > 0  # the last row has a posterior


def test_what_a_refresh_delivers_is_stored_and_was_not_trained(complete, content, make_plan, data):
    content = copy.deepcopy(content)
    content["rows"] = {
        "polar_vbll": {"recipe": {"finalize": {"refresh": "block"}}, "rates": [4e-3]}
    }
    plan = make_plan(read_suite(content, "dense"), seeds=1)
    run(plan, data)
    (dense,) = cells_of(plan).values()
    diagonal = complete.rate("topics", "polar_vbll")
    plain = read(Key("topics", "polar_vbll", 0, diagonal), complete.out)
    assert dense.cost["trained"] == plain.cost["trained"]
    assert dense.cost["stored"] > 10 * plain.cost["stored"]


def test_a_benchmark_goes_on_where_it_was(complete, make_plan, data):
    plan = make_plan()
    shutil.copytree(complete.out, plan.out)
    for key in (
        Key("topics", "cooled", 0, complete.rate("topics", "mle")),
        Key("topics", "polar_vbll", 1, complete.rate("topics", "polar_vbll")),
    ):
        shutil.rmtree(key.folder(plan.out))
    plan.check()
    told = []
    run(plan, data, report=lambda cell, done: told.append((cell.key.row, done)))
    assert told == [("cooled", plan.total - 1), ("polar_vbll", plan.total)]
    for key, cell in cells_of(complete).items():
        assert numbers(read(key, plan.out)) == numbers(cell), key
    run(plan, data, report=lambda *_: pytest.fail("there was nothing left to do"))


def test_a_trial_is_measured_as_if_at_once(complete, make_plan, data):
    """The same training, its rate the only one, is measured without being stored between."""
    lr = complete.rate("topics", "polar_vbll")
    key = Key("topics", "polar_vbll", 0, lr)
    plan = make_plan(rows=["polar_vbll"], seeds=1)
    plan = replace(plan, suite=replace(plan.suite, rates={**plan.suite.rates, "polar": (lr,)}))
    run(plan, data)
    once, twice = read(key, plan.out), read(key, complete.out)
    assert once.rates == [lr] and once.measured
    for name in ("val_nll", "metrics", "intervals", "ood", "chosen"):
        assert getattr(once, name) == getattr(twice, name)
    a, b = read_arrays(key, plan.out), read_arrays(key, complete.out)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_trial_without_its_model_is_trained_again(complete, make_plan, data):
    """It was not chosen before a rate was taken away, or the process died between two folders."""
    plan = make_plan(rows=["polar_vbll"])
    shutil.copytree(complete.out, plan.out)
    lr = plan.rate("topics", "polar_vbll")
    (other,) = set(plan.suite.tried("topics", "polar_vbll")) - {lr}
    shutil.rmtree(Key("topics", "polar_vbll", 0, lr).folder(plan.out))
    for seed in (0, 1):
        shutil.rmtree(Key("topics", "polar_vbll", seed, lr).folder(plan.out), ignore_errors=True)
    cut = replace(plan.suite, rates={**plan.suite.rates, "polar": (other,)})
    plan = replace(plan, suite=cut, seeds=1)
    assert plan.todo() == ([Key("topics", "polar_vbll", 0, other)], 1)
    run(plan, data)
    assert read(Key("topics", "polar_vbll", 0, other), plan.out).measured
    assert plan.todo() == ([], 1)


def test_an_error_in_the_middle_loses_nothing(complete, make_plan, data, monkeypatch):
    plan = make_plan(rows=["mle"])
    running = importlib.import_module("bayestune.bench.run")  # its own name is the function's
    fit, calls = running.fit, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return fit(*arguments, **options)

    monkeypatch.setattr(running, "fit", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(plan, data)
    assert [key.lr for key in cells_of(plan)] == [LOW]
    run(plan, data)
    assert len(calls) == 4  # the first, the one that failed, and the two that were left
    for key, cell in cells_of(plan).items():
        assert numbers(cell) == numbers(read(key, complete.out)), key


@pytest.fixture
def wild(content):
    """A suite whose first row diverges in its first epoch, on a model that others start from."""
    row = {"method": "mle", "recipe": {"train": {"head_lr": 3e37}}}
    rows = {"wild": row, "after": {"method": "temperature", "start": "wild"}, "mle": None}
    return read_suite({**copy.deepcopy(content), "rows": rows}, "small")


def test_a_training_that_diverges_is_a_cell_and_the_rest_go_on(wild, make_plan, data):
    plan = make_plan(wild, seeds=1)
    told = []
    run(plan, data, report=lambda cell, done: told.append((cell.key, cell.error, done)))
    for lr in (LOW, HIGH):
        cell = read(Key("topics", "wild", 0, lr), plan.out)
        assert "lower train.lr" in cell.error
        assert cell.val_nll == float("inf")
        assert cell.metrics == cell.ood == cell.cost == {}
        assert cell.rows["train"] == 45
        assert not (cell.key.folder(plan.out) / MODEL).exists()
        assert read(Key("topics", "mle", 0, lr), plan.out).error == ""
    assert [(key.row, bool(error), done) for key, error, done in told] == [
        ("wild", True, 1),
        ("wild", True, 2),
        ("mle", False, 3),
        ("mle", False, 4),
        ("mle", False, 4),  # the better one, measured
    ]
    assert plan.todo() == ([], 4)
    assert plan.broken() == ["topics wild", "topics after"]


def test_what_starts_from_a_training_that_diverged_is_a_cell(wild, make_plan, data):
    plan = make_plan(wild, rows=["wild", "after"])
    # The rate that the first seed takes breaks off on the second.
    made_cell(wild, plan.out, Key("topics", "wild", 0, LOW), 0.1)
    made_cell(wild, plan.out, Key("topics", "wild", 0, HIGH), 0.2)
    made_cell(wild, plan.out, Key("topics", "after", 0, LOW), 0.2)
    run(plan, data)
    assert plan.todo() == ([], plan.total)
    cell = read(Key("topics", "after", 1, LOW), plan.out)
    assert cell.error == f"wild broke off: {read(Key('topics', 'wild', 1, LOW), plan.out).error}"


def test_the_rows_of_all_tasks_are_read_first(content, make_plan, data):
    content = copy.deepcopy(content)
    content["tasks"]["later"] = {**content["tasks"]["topics"], "test": "tset.jsonl"}
    plan = make_plan(read_suite(content, "small"))
    with pytest.raises(DataError, match=r"tset\.jsonl: no such file"):
        run(plan, data)
    with pytest.raises(ConfigError, match="--data DIR"):
        run(plan)
    assert not plan.out.exists()


def test_other_test_rows_are_not_mixed_in(complete, make_plan, data, tmp_path):
    plan = make_plan(seeds=3)
    shutil.copytree(complete.out, plan.out)
    other = tmp_path / "data"
    shutil.copytree(data, other)
    lines = (other / "test.jsonl").read_text().splitlines(keepends=True)
    (other / "test.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ConfigError, match=r"was measured on other test rows of topics"):
        run(plan, other)


def test_middle_rates(suite, make_plan, data):
    plan = make_plan(suite.at_middle_rates(), seeds=1, rows=["mle"])
    run(plan, data)
    (cell,) = cells_of(plan).values()
    assert cell.key.lr == LOW
    assert cell.rates == [LOW]
    assert make_plan(suite, seeds=1, rows=["mle"]).todo()[1] == 1  # a sweep takes it over


def test_progress_of_them_all(make_plan, data):
    said = []

    @contextmanager
    def progress(label, total):
        said.append((label, total))
        yield lambda count=1, note="": said.append((count, note))

    plan = make_plan(seeds=1, rows=["mle"])
    Bench(plan.suite, plan.out, data).cell(Key("topics", "mle", 0, LOW))
    run(plan, data, progress=progress)
    assert said[0] == ("small", 1)  # one of the two was there
    steps = [note for count, note in said[1:] if count == 0]
    assert f"topics mle seed 0 lr {HIGH:g}: training 45/45" in steps
    assert [note for count, note in said[1:] if count] == [f"topics mle seed 0 lr {HIGH:g}"]


def test_what_the_package_offers():
    assert all(hasattr(bench, name) for name in bench.__all__)
