from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.data.labels import LabelSet, as_integer, as_label, read_label_names
from bayestune.errors import DataError

SENTIMENT = LabelSet((0, 1), ("negative", "positive"))


def test_label_set_is_a_sequence_of_names():
    assert len(SENTIMENT) == 2
    assert list(SENTIMENT) == ["negative", "positive"]
    assert SENTIMENT[1] == "positive"
    assert "positive" in SENTIMENT and 1 not in SENTIMENT


@pytest.mark.parametrize(
    ("given_label", "expected"),
    [
        (0, 0),
        (1, 1),
        (1.0, 1),
        ("1", 1),
        ("1.0", 1),
        (" positive ", 1),
        ("negative", 0),
        (np.int64(1), 1),
        (np.float32(0), 0),
    ],
)
def test_index_accepts_value_name_and_text(given_label, expected):
    assert SENTIMENT.index(given_label) == expected


@pytest.mark.parametrize("unknown", [2, -1, "2", "01", "Positive?", True])
def test_index_names_the_unknown_label(unknown):
    with pytest.raises(DataError, match="Unknown label"):
        SENTIMENT.index(unknown)


def test_index_suggests_the_nearest_name():
    with pytest.raises(DataError, match=r"Unknown label 'positve'. Did you mean 'positive'\?"):
        SENTIMENT.index("positve")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 0.5, "", "  ", [1], {"a": 1}])
def test_index_refuses_what_is_no_label(value):
    with pytest.raises(DataError, match="integer or a string"):
        SENTIMENT.index(value)


def test_string_values_beat_names_and_take_integers():
    labels = LabelSet(("10", "9"), ("10", "9"))
    assert labels.index("9") == 1
    assert labels.index(9) == 1


def test_numeric_names_of_integer_classes():
    labels = LabelSet.from_names(["1", "2"])
    assert labels.index(1) == 1
    assert labels.index("2") == 1  # only a name
    with pytest.raises(DataError, match="name of class 0 and the number of class 1"):
        labels.index("1")
    with pytest.raises(DataError, match="Unknown label 2"):
        labels.index(2)


def test_booleans_are_names():
    labels = LabelSet(("false", "true"), ("false", "true"))
    assert labels.index(True) == 1
    assert labels.index(False) == 0
    assert as_label(np.bool_(True)) == "true"


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ((0, 1), ("a",), "2 label values but 1 names"),
        ((0, "a"), ("x", "y"), "mix integers and strings"),
        ((0, 0), ("x", "y"), "value '0' stands for two"),
        ((0, 1), ("x", "x"), "name 'x' stands for two"),
    ],
)
def test_label_set_is_checked(values, names, message):
    with pytest.raises(DataError, match=message):
        LabelSet(values, names)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text(min_size=1).filter(lambda n: n == n.strip()), min_size=1, unique=True))
def test_json_round_trip(names):
    for labels in (LabelSet.from_names(names), LabelSet(tuple(names), tuple(names))):
        assert LabelSet.from_json(json.loads(json.dumps(labels.to_json()))) == labels
    assert LabelSet.from_json(names) == LabelSet.from_names(names)


@pytest.mark.parametrize(
    "content", ["a", {"values": [0]}, {"values": 1, "names": 2}, [1, 2], ["a", "a"], [""], None]
)
def test_from_json_refuses_other_forms(content):
    with pytest.raises(DataError):
        LabelSet.from_json(content)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *[("3", 3), ("-2", -2), ("3.0", 3), ("0", 0), ("-0", "-0"), ("03", "03"), ("+3", "+3")],
        *[("3.5", "3.5"), ("x", "x"), ("٣", "٣"), ("9" * 30, "9" * 30), ("", "")],
    ],
)
def test_as_integer_is_canonical(cell, value):
    assert as_integer(cell) == value
    assert type(as_integer(cell)) is type(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 0}', "expected a JSON list"),
        (b'["a", 1]', "entry 1 is 1"),
        (b'["a", "a"]', "'a' stands twice"),
        (b'["a",', "not a JSON list"),
        (b"\xff\xff", "not a JSON list"),
        (b"[" * 100_000, "not a JSON list"),
    ],
)
def test_bad_label_files_are_named(write, content, message):
    path = write("labels.json", content)
    with pytest.raises(DataError, match=message) as error:
        read_label_names(path)
    assert str(path) in str(error.value)


def test_missing_label_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        read_label_names(tmp_path / "gone.json")
