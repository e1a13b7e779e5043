"""Which trainings a benchmark needs, and which of them can be done now."""

from __future__ import annotations

import copy
import shutil

import pytest
from bench_checks import made_cell

from bayestune.bench import Key, Plan, read_suite
from bayestune.bench.cell import MODEL
from bayestune.errors import ConfigError, StoreError

LOW, HIGH = 1e-3, 2e-2


def test_the_first_seed_tries_all_rates(make_plan):
    plan = make_plan()
    ready, done = plan.todo()
    assert done == 0
    assert ready == [
        Key("topics", "mle", 0, LOW),
        Key("topics", "mle", 0, HIGH),
        Key("topics", "polar_vbll", 0, 4e-3),
        Key("topics", "polar_vbll", 0, HIGH),
    ]
    # 2 rates of two rows, then 1 of the two others; 4 rows on the second seed
    assert plan.total == 2 * 2 + 2 + 4
    assert plan.rate("topics", "mle") is None


def test_the_others_take_the_best(make_plan, suite):
    plan = make_plan()
    made_cell(suite, plan.out, Key("topics", "mle", 0, LOW), 0.4)
    assert plan.rate("topics", "mle") is None
    assert not [key for key in plan.todo()[0] if key.row in ("cooled", "borrowed") or key.seed]
    made_cell(suite, plan.out, Key("topics", "mle", 0, HIGH), 0.3)
    assert [plan.rate("topics", row) for row in ("mle", "cooled", "borrowed")] == [HIGH] * 3
    ready, done = plan.todo()
    assert done == 2
    assert ready == [
        Key("topics", "cooled", 0, HIGH),
        Key("topics", "borrowed", 0, HIGH),
        Key("topics", "polar_vbll", 0, 4e-3),
        Key("topics", "polar_vbll", 0, HIGH),
        Key("topics", "mle", 1, HIGH),
        # `cooled` starts from that one
        Key("topics", "borrowed", 1, HIGH),
    ]
    made_cell(suite, plan.out, Key("topics", "mle", 1, HIGH), 9.0)
    assert plan.rate("topics", "mle") == HIGH  # the first seed alone chooses
    assert Key("topics", "cooled", 1, HIGH) in plan.todo()[0]


def test_a_rate_that_broke_off_is_not_taken(make_plan, suite):
    plan = make_plan()
    made_cell(suite, plan.out, Key("topics", "mle", 0, LOW), 7.0)
    made_cell(suite, plan.out, Key("topics", "mle", 0, HIGH), error="The loss is nan.")
    assert plan.rate("topics", "mle") == LOW
    assert "topics mle" not in plan.broken()


def test_where_all_rates_broke_off_nothing_follows(make_plan, suite):
    plan = make_plan(rows=["mle", "cooled"])
    for lr in (LOW, HIGH):
        made_cell(suite, plan.out, Key("topics", "mle", 0, lr), error="The loss is nan.")
    assert plan.rate("topics", "cooled") is None
    assert plan.todo() == ([], 2)
    assert plan.broken() == ["topics mle", "topics cooled"]


def test_rows_bring_what_they_need(suite, tmp_path):
    assert Plan.of(suite, tmp_path, ["topics"], ["cooled"], 1).rows == ("mle", "cooled")
    assert Plan.of(suite, tmp_path, ["topics"], ["polar_vbll"], 1).rows == ("polar_vbll",)
    everything = Plan.of(suite, tmp_path, ["topics"], ["polar_vbll", "cooled", "borrowed"], 1)
    assert everything.rows == tuple(suite.rows)  # in the suite's order
    assert Plan.of(suite, tmp_path, ["topics", "topics"], ["mle"], 1).tasks == ("topics",)


def test_middle_rates_are_not_tried(make_plan, suite):
    plan = make_plan(suite.at_middle_rates())
    assert plan.total == 4 + 4
    assert plan.todo()[0] == [
        Key("topics", "mle", 0, LOW),
        Key("topics", "polar_vbll", 0, 4e-3),
    ]


def test_a_cell_of_another_suite_is_refused(make_plan, suite, content):
    plan = make_plan()
    made_cell(suite, plan.out, Key("topics", "mle", 1, HIGH))
    plan.check()
    other = copy.deepcopy(content)
    other["recipe"]["train"]["epochs"] = 5
    with pytest.raises(ConfigError, match=r"seed1-lr0\.02 is of another suite: its train is "):
        make_plan(read_suite(other, "small")).check()
    other = copy.deepcopy(content)
    other["tasks"]["topics"]["train_rows"] = 44
    with pytest.raises(ConfigError, match=r"its train_rows is 45, here it is 44"):
        make_plan(read_suite(other, "small")).check()
    make_plan(read_suite(other, "small"), rows=["polar_vbll"]).check()  # none of its cells


def test_seeds_and_rates_may_change(make_plan, suite, content):
    plan = make_plan()
    made_cell(suite, plan.out, Key("topics", "mle", 0, LOW))
    other = copy.deepcopy(content)
    other["rates"] = {"lora": [LOW, 5e-3, HIGH], "polar": [4e-3, 1e-2, 2e-2]}
    grown = make_plan(read_suite(other, "small"), seeds=5)
    grown.check()
    assert grown.todo()[1] == 1


def test_a_damaged_cell_says_what_to_do(make_plan, suite):
    plan = make_plan()
    key = Key("topics", "mle", 0, LOW)
    made_cell(suite, plan.out, key)
    (key.folder(plan.out) / "cell.json").write_text("{")
    with pytest.raises(StoreError, match=r"seed0-lr0\.001 is damaged .*remove that folder"):
        plan.check()


def test_a_cell_without_the_model_that_others_start_from(make_plan, suite):
    plan = make_plan()
    key = Key("topics", "mle", 0, LOW)
    made_cell(suite, plan.out, key)
    shutil.rmtree(key.folder(plan.out) / MODEL)
    with pytest.raises(ConfigError, match=r"kept no model: remove that folder"):
        plan.check()
    make_plan(rows=["mle", "borrowed"]).check()  # which do not need it
