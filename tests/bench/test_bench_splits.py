"""The rows of a task: drawn by the seed, and nothing of the test set among them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bayestune.bench import TaskSpec, read_splits
from bayestune.data.quickstart import quickstart_path
from bayestune.errors import ConfigError, DataError


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{name} {i}", "label": ("one", "two", "three")[i % 3]} for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path):
    """Write rows into files of a folder; what is not given has a default."""

    def make(**given: list[dict[str, Any]]) -> Path:
        defaults = {"train": rows("train", 60), "test": rows("test", 12), "val": rows("val", 15)}
        defaults["oos"] = [{"text": f"else {i}", "label": "unheard of"} for i in range(5)]
        for name, each in (defaults | given).items():
            text = "".join(json.dumps(row) + "\n" for row in each)
            (tmp_path / f"{name}.jsonl").write_text(text)
        return tmp_path

    return make


def spec(**given: Any) -> TaskSpec:
    return TaskSpec(**{"train": "train.jsonl", "test": "test.jsonl", "val_rows": 9, **given})


def texts(task) -> list[str]:
    return [example.text for example in task]


def test_a_seed_draws_the_same_rows_and_another_others(folder):
    place = folder()
    asked = spec(train_rows=30, test_rows=6)
    first, again, other = (read_splits(asked, place, seed) for seed in (1, 1, 2))
    for part in ("train", "val", "test"):
        assert texts(getattr(first, part)) == texts(getattr(again, part))
    assert texts(first.train) != texts(other.train)
    assert texts(first.val) != texts(other.val)
    assert first.test.hash == other.test.hash
    assert first.counts == {
        "train": 30,
        "val": 9,
        "test": 6,
        "ood": {},
        "shifted": {},
        "dropped": {"train": 0, "val": 0},
        "sources": {"train": "train.jsonl", "test": "test.jsonl"},
        "test_hash": first.test.hash[:16],
    }
    assert not set(texts(first.train)) & set(texts(first.val))


def test_the_same_number_of_each_class(folder):
    lopsided = [*rows("train", 30), *({"text": f"more {i}", "label": "two"} for i in range(50))]
    found = read_splits(spec(per_class=4), folder(train=lopsided), 0)
    assert Counter(e.label for e in found.train) == {0: 4, 1: 4, 2: 4}
    assert len(found.val) == 9
    assert not set(texts(found.train)) & set(texts(found.val))


def test_a_class_that_is_too_small(folder):
    with pytest.raises(DataError, match=r"11 rows of each class are asked for, of 'one' 10 can"):
        read_splits(spec(per_class=11), folder(train=rows("train", 30)), 0)


def test_test_rows_are_kept_out_of_training(folder):
    place = folder(train=[*rows("train", 50), *rows("test", 7)])
    for seed in range(3):
        found = read_splits(spec(), place, seed)
        assert found.dropped == {"train": 7, "val": 0}
        assert len(found.train) == 50 - 9
        assert not set(texts(found.test)) & set(texts(found.train) + texts(found.val))


def test_only_test_rows_that_are_drawn_count(folder):
    found = read_splits(spec(test_rows=3), folder(train=[*rows("train", 50), *rows("test", 12)]), 0)
    assert found.dropped["train"] == 3


def test_held_out_rows_of_a_file_are_kept_clear_of_both(folder):
    val = [*rows("val", 6), *rows("test", 2), *rows("train", 3)]
    found = read_splits(spec(val="val.jsonl", val_rows=None), folder(val=val), 0)
    assert texts(found.val) == texts(found.val) == [f"val {i}" for i in range(6)]
    assert found.dropped == {"train": 0, "val": 5}
    assert len(found.train) == 60
    # A row that the seed has not drawn for training may be held out.
    some = read_splits(spec(val="val.jsonl", val_rows=None, train_rows=20), folder(val=val), 0)
    drawn = set(texts(some.train))
    kept = [f"val {i}" for i in range(6)] + [f"train {i}" for i in range(3)]
    assert texts(some.val) == [text for text in kept if text not in drawn]


@pytest.mark.parametrize("seed", range(5))
def test_doubles_are_held_out_together(folder, seed):
    place = folder(train=[*rows("train", 12), *rows("train", 12)])
    found = read_splits(spec(val_rows=4), place, seed)
    assert len(found.val) == 4
    assert not set(texts(found.train)) & set(texts(found.val))
    assert len(found.train) == 16


def test_a_pair_is_another_content(folder):
    pairs = [{**row, "text2": "a"} for row in rows("train", 20)]
    same = [{**row, "text2": "b"} for row in rows("train", 5)]
    twice = [{**row, "text2": "a"} for row in rows("train", 5)]
    asked = spec(columns={"text2": "text2"}, val_rows=2)
    assert read_splits(asked, folder(train=pairs, test=same), 0).dropped["train"] == 0
    assert read_splits(asked, folder(train=pairs, test=twice), 0).dropped["train"] == 5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train_rows": 61}, r"train\.jsonl: 61 rows are asked for, 60 can be taken"),
        ({"train_rows": 55}, r"train\.jsonl: 9 rows are asked for, 5 can be taken"),
        ({"val_rows": 61}, r"train\.jsonl: 61 rows are asked for, 60 can be taken"),
        ({"val_rows": 60}, r"train\.jsonl: no rows are left to train on"),
        ({"test_rows": 13}, r"test\.jsonl: 13 rows are asked for, 12 can be taken"),
        ({"val": "val.jsonl", "val_rows": 16}, r"val\.jsonl: 16 rows are asked for, 15 can"),
        ({"val": "test.jsonl", "val_rows": None}, r"no rows are left to choose by"),
        ({"train": "tarin.jsonl"}, r"tarin\.jsonl: no such file"),
    ],
)
def test_too_few_rows(given, words, folder):
    with pytest.raises(DataError, match=words):
        read_splits(spec(**given), folder(), 0)


def test_rows_from_elsewhere_have_labels_of_their_own(folder):
    found = read_splits(spec(ood={"else": "oos.jsonl"}), folder(), 0)
    assert texts(found.ood["else"]) == [f"else {i}" for i in range(5)]
    assert set(found.ood["else"].targets) == {-1}
    assert found.ood["else"].labels == found.train.labels


def test_rows_from_elsewhere_are_drawn_once_for_all_seeds(folder):
    place = folder()
    found = [read_splits(spec(ood={"x": "oos.jsonl"}, ood_rows=3), place, s) for s in (0, 1)]
    assert texts(found[0].ood["x"]) == texts(found[1].ood["x"])
    assert len(found[0].ood["x"]) == 3
    assert len(read_splits(spec(ood={"x": "oos.jsonl"}, ood_rows=9), place, 0).ood["x"]) == 5


def test_columns_of_other_names(folder):
    other = [{"message": row["text"], "topic": row["label"]} for row in rows("train", 30)]
    test = [{"message": row["text"], "topic": row["label"]} for row in rows("test", 6)]
    oos = [{"message": "somewhere else"}]
    place = folder(train=other, test=test, oos=oos)
    asked = spec(columns={"text": "message", "label": "topic"}, ood={"x": "oos.jsonl"})
    found = read_splits(asked, place, 0)
    assert found.train.labels.names == ("one", "three", "two")
    assert texts(found.ood["x"]) == ["somewhere else"]


def test_questions_with_choices(folder):
    def asked(name: str, count: int) -> list[dict[str, Any]]:
        return [
            {"question": f"{name} {i}?", "choices": ["yes", "no"], "answer": "AB"[i % 2]}
            for i in range(count)
        ]

    place = folder(
        train=[*asked("train", 20), *asked("test", 4)], test=asked("test", 4), oos=asked("else", 3)
    )
    found = read_splits(spec(ood={"x": "oos.jsonl"}), place, 0)
    assert found.train.kind == "choice"
    assert found.dropped["train"] == 4
    assert set(found.ood["x"].targets) == {-1}


def test_numbers_are_refused(folder):
    hours = [{"text": f"row {i}", "label": i / 7} for i in range(30)]
    with pytest.raises(ConfigError, match=r"train\.jsonl holds numbers; .* classifiers"):
        read_splits(spec(columns={"kind": "regression"}), folder(train=hours), 0)


def test_files_need_a_folder():
    with pytest.raises(ConfigError, match=r"train\.jsonl is a file: give the folder .*--data DIR"):
        read_splits(spec(), None, 0)


def test_the_quick_start_data_need_none():
    names = {"train": "quickstart:train.jsonl", "test": "quickstart:test.jsonl"}
    found = read_splits(spec(**names, ood={"oos": "quickstart:oos.jsonl"}), None, 0)
    lines = quickstart_path("test.jsonl").read_text(encoding="utf-8").splitlines()
    assert texts(found.test) == [json.loads(line)["text"] for line in lines]
    assert len(found.ood["oos"]) == 80
    with pytest.raises(DataError, match=r"no quick-start file 'tset\.jsonl'.*'test\.jsonl'"):
        read_splits(spec(**names | {"test": "quickstart:tset.jsonl"}), None, 0)
