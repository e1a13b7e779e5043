"""A benchmark's folder says what it was asked to hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_benchmark import ROWS, made_suite

from bayestune.bench import Plan, load_suite, names, read_plan, write_plan
from bayestune.errors import StoreError


@pytest.mark.parametrize("name", names())
def test_a_suite_reads_back_as_it_was(name, tmp_path) -> None:
    suite = load_suite(name)
    plan = Plan.of(suite, tmp_path / "new", list(suite.tasks), list(suite.rows), suite.seeds)
    write_plan(plan)
    assert read_plan(tmp_path / "new") == plan


def test_what_was_asked_for_earlier_stays_wanted(tmp_path) -> None:
    suite = made_suite()
    write_plan(Plan.of(suite, tmp_path, ["intents"], ["map"], 3))
    write_plan(Plan.of(suite, tmp_path, ["sentiment"], ["blob"], 1))
    found = read_plan(tmp_path)
    assert (found.tasks, found.rows, found.seeds) == (("sentiment", "intents"), ("map", "blob"), 3)


def test_what_a_changed_suite_has_no_more_is_forgotten(tmp_path) -> None:
    write_plan(Plan.of(made_suite(), tmp_path, ["intents"], ["map", "blob"], 1))
    fewer = made_suite({"blob": ROWS["blob"]})
    write_plan(Plan.of(fewer, tmp_path, ["intents"], ["blob"], 1))
    assert read_plan(tmp_path).rows == ("blob",)


def test_nothing_is_written_that_a_suite_need_not_say(tmp_path) -> None:
    write_plan(Plan.of(replace(made_suite(), seeds=2), tmp_path, ["intents"], ["map"], 2))
    data = json.loads((tmp_path / "suite.json").read_text())
    assert data["suite"]["rows"]["temperature"] == {"method": "temperature", "start": "mle"}
    assert "columns" not in data["suite"]["tasks"]["intents"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is missing"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"name": "x", "suite": {}, "wanted": {}}', "is damaged: .* there are no tasks"),
    ],
)
def test_a_folder_without_a_plan_says_so(text, said, tmp_path) -> None:
    if text is not None:
        (tmp_path / "suite.json").write_text(text)
    with pytest.raises(StoreError, match=said):
        read_plan(tmp_path)


def test_rows_that_the_suite_does_not_have_are_damage(tmp_path) -> None:
    write_plan(Plan.of(made_suite(), tmp_path, ["intents"], ["map"], 1))
    path = tmp_path / "suite.json"
    path.write_text(path.read_text().replace('"rows": [\n      "map"', '"rows": [\n      "mop"'))
    with pytest.raises(StoreError, match="does not have"):
        read_plan(tmp_path)
