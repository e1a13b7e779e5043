"""The contents of a report are those of its cells."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
from made_benchmark import ROWS, TASKS, made_suite, make

from bayestune import metrics
from bayestune.bench import Key, read, read_arrays
from bayestune.bench.cell import write
from bayestune.errors import ConfigError, StoreError
from bayestune.report import gather
from bayestune.report.curves import BINS, COVERAGES, RATES


def task_of(report, name):
    return next(task for task in report.tasks if task.name == name)


def method_of(report, task, name):
    return next(m for m in task_of(report, task).methods if m.name == name)


def seeds_of(folder, method):
    return [read_arrays(cell.key, folder) for cell in method.entry.line.cells]


@pytest.mark.parametrize("task", made_suite().tasks)
def test_reliability_is_counted_over_all_seeds(folder, report, task) -> None:
    method = method_of(report, task, "polar_vbll")
    bins = [[] for _ in range(BINS)]
    for arrays in seeds_of(folder, method):
        for probs, label in zip(arrays["probs"].tolist(), arrays["targets"].tolist(), strict=True):
            top = max(probs)
            bins[min(BINS, math.ceil(top * BINS)) - 1].append((top, probs.index(top) == label))
    found = method.reliability
    assert list(found.counts) == [len(rows) for rows in bins]
    assert sum(found.counts) == 3 * TASKS[task][1]
    for b, rows in enumerate(bins):
        if not rows:
            assert found.confidence[b] is found.accuracy[b] is None
            continue
        assert found.confidence[b] == pytest.approx(sum(c for c, _ in rows) / len(rows), abs=1e-9)
        assert found.accuracy[b] == pytest.approx(sum(a for _, a in rows) / len(rows))


def test_risk_is_the_mean_of_the_curves_over_seeds(folder, report) -> None:
    method = method_of(report, "questions", "mle")
    expected = [0.0] * len(COVERAGES)
    for arrays in seeds_of(folder, method):
        confidence, correct = metrics.top_label(arrays["probs"], arrays["targets"])
        for i, coverage in enumerate(COVERAGES):
            expected[i] += metrics.risk_at_coverage(confidence, correct, coverage) / 3
    assert method.risk == pytest.approx(expected)
    accuracy = method.entry.values["acc"].mean
    assert method.risk[-1] == pytest.approx(1 - accuracy)


@pytest.mark.parametrize("score", ["max_prob", "entropy", "mutual_information", "density"])
def test_roc_has_the_area_that_the_cells_have(folder, report, score) -> None:
    for method in task_of(report, "questions").methods:
        for name, by_score in method.unfamiliar.items():
            cells = method.entry.line.cells
            areas = [cell.ood[name][f"auroc_{score}"] for cell in cells]
            found = by_score[score]
            assert found.auroc[0] == pytest.approx(sum(areas) / len(areas), abs=1e-6)
            steps = zip(RATES, RATES[1:], found.roc, found.roc[1:], strict=False)
            area = sum((b - a) * (x + y) / 2 for a, b, x, y in steps)
            assert area == pytest.approx(found.auroc[0], abs=0.01)
            assert sum(found.inside) == 200
            assert sum(found.outside) == TASKS["questions"][2][name]


def test_histograms_hold_the_scores_of_the_first_seed(folder, report) -> None:
    method = method_of(report, "sentiment", "blob")
    found = method.unfamiliar["questions"]["density"]
    arrays = seeds_of(folder, method)[0]
    for name, counts in (("score.density", found.inside), ("ood.questions.density", found.outside)):
        expected = [0] * len(counts)
        for value in arrays[name].tolist():
            place = int((value - found.low) / (found.high - found.low) * len(counts))
            expected[min(max(place, 0), len(counts) - 1)] += 1
        assert sum(abs(a - b) for a, b in zip(counts, expected, strict=True)) <= 2  # on a border


def test_trials_show_what_every_rate_gave(folder, report) -> None:
    found = method_of(report, "sentiment", "blob").trials
    assert [(t.lr, t.chosen) for t in found] == [(0.001, False), (0.002, True), (0.004, False)]
    assert found[0].nll == read(Key("sentiment", "blob", 0, 0.001), folder).val_nll
    assert found[2].nll is None, "it broke off"
    assert method_of(report, "sentiment", "temperature").trials == ()


def test_epochs_are_kept_by_seed_and_members_averaged(report) -> None:
    assert len(method_of(report, "sentiment", "mle").epochs) == 3
    ensemble, alone = (method_of(report, "sentiment", row) for row in ("ensemble", "mle"))
    nll = ensemble.entry.line.cells[0].metrics["nll"]
    # Members 0, 1 and 2 are 0.05 apart.
    assert ensemble.epochs[0]["val_nll"][0] == pytest.approx(nll * 1.62 + 0.05)
    assert len(alone.epochs[0]["val_nll"]) == len(ensemble.epochs[0]["val_nll"]) == 6
    assert method_of(report, "sentiment", "tfb").epochs[0] == {}


def test_controls_are_the_point_estimates(report) -> None:
    found = {m.name: m.point for m in task_of(report, "sentiment").methods}
    assert found == {row: made[3] == 0 for row, made in ROWS.items()}


def test_recipes_are_common_or_of_a_method(report) -> None:
    assert report.recipe["model"] == "tiny"
    assert "seed" not in report.recipe
    method = method_of(report, "sentiment", "polar_vbll")
    whole = {**report.recipe, **method.recipe}
    assert not set(report.recipe) & set(method.recipe)
    assert whole["adapter.kind"] == "polar"
    assert whole["train.batch_size"] == method.entry.line.cells[0].recipe["train"]["batch_size"]


def test_what_is_missing_is_said(report) -> None:
    said = {task.name: task.missing for task in report.tasks}
    assert said["sentiment"] == (
        "blob, seed 0, learning rate 0.004 broke off: the loss of step 12 is not finite; lower "
        "train.lr.",
    )
    assert said["questions"] == ("ensemble: seed 2 is not trained yet.",)
    assert [line.split(":")[0] for line in said["intents"]] == [
        "map, seed 1, learning rate 0.002 broke off",
        "polar_mle",
    ]
    assert "rate 0.016 is missing" in said["intents"][1]
    assert (report.done, report.total) == (104, 108)
    assert "polar_mle" not in [m.name for m in task_of(report, "intents").methods]
    assert len(method_of(report, "intents", "map").entry.line.cells) == 2


def test_rows_that_wait_or_never_worked_are_said(tmp_path) -> None:
    rows = {row: ROWS[row] for row in ("mle", "temperature", "blob")}
    keys = [Key("sentiment", row, 0, lr) for row in ("mle", "blob") for lr in (0.001, 0.002, 0.004)]
    make(tmp_path, made_suite(rows, ["sentiment"], seeds=2), rows, skip=keys[:1], fail=keys[3:])
    task = gather(tmp_path).tasks[0]
    assert task.table is None
    assert task.missing[0].startswith(
        "mle: left out until every learning rate is tried; rate 0.001"
    )
    assert task.missing[1] == "temperature: not trained yet; mle has no learning rate to give it."
    assert task.missing[-1] == "blob: left out, it broke off at every learning rate."


def test_rows_without_a_common_seed_are_not_compared(tmp_path) -> None:
    rows = {row: ROWS[row] for row in ("mle", "temperature")}
    suite = made_suite(rows, ["sentiment"], seeds=2)
    make(tmp_path, suite, rows, fail=[Key("sentiment", "temperature", 0, 0.002)],
         skip=[Key("sentiment", "mle", 1, 0.002)])  # fmt: skip
    # Its own training was thrown away after the second row had started from it.
    make(tmp_path / "all", suite, rows)
    place = "cells/sentiment/temperature/seed1-lr0.002"
    shutil.copytree(tmp_path / "all" / place, tmp_path / place)
    task = gather(tmp_path).tasks[0]
    entry = task.methods[1].entry
    assert [cell.key.seed for cell in entry.line.cells] == [1]
    assert entry.gap is None
    assert entry.ratios == {"train_seconds": None, "predict_seconds": None}


def test_of_many_rows_the_reference_and_the_best_are_shown(tmp_path) -> None:
    rows = {f"row{i}": ("map", 1.0, 1 + 0.5 * i, 0.0) for i in range(10)}
    make(tmp_path, made_suite(rows, ["sentiment"], seeds=1), rows)
    report = gather(tmp_path, "row9")
    order = sorted(report.tasks[0].methods, key=lambda m: m.entry.values["NLL"].mean)
    best = {m.name for m in order[:5]}
    assert set(report.shown) == best | {"row9"}
    assert report.tasks[0].methods[9].entry.gap is None


def test_a_row_that_is_not_there_names_the_nearest(folder) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'polar_vbll'"):
        gather(folder, "polar_vbl")


def test_a_damaged_cell_is_named(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy/cells/intents/mle/seed1-lr0.002/arrays.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"arrays\.safetensors is damaged"):
        gather(tmp_path / "copy")


def test_versions_that_differ_are_all_named(tmp_path) -> None:
    rows = {"map": ROWS["map"]}
    plan = make(tmp_path, made_suite(rows, ["sentiment"], seeds=2), rows)
    key = Key("sentiment", "map", 1, 0.002)
    cell = read(key, plan.out)
    other = replace(cell, environment={**cell.environment, "torch": "2.12.0"})
    write(other, read_arrays(key, plan.out), plan.out)
    assert gather(tmp_path).environment["torch"] == ("2.12.0", "2.13.0")
    assert json.loads((tmp_path / "suite.json").read_text())["wanted"]["seeds"] == 2
