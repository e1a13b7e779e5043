"""Tasks whose labels are numbers: reading, asking for them, and everything that is no number."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bayestune.data import Scaling, Task
from bayestune.data.numbers import as_number
from bayestune.errors import ConfigError, DataError

ROWS = [{"text": "a", "label": 0.5}, {"text": "b", "label": -3}, {"text": "c", "label": 1e6}]


def test_numbers_are_read_as_they_are() -> None:
    task = Task.from_rows(ROWS, kind="regression")
    assert task.kind == "regression"
    assert task.values == [0.5, -3.0, 1e6]
    assert (len(task.labels), task.outputs, task.class_counts, task.choice_counts) == (
        0,
        1,
        (),
        None,
    )


def test_csv_and_columns(tmp_path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("body,hours\na, 1.5 \nb,-2e3\nc,7\n")
    task = Task.load(file, kind="regression", text="body", label="hours")
    assert task.values == [1.5, -2000.0, 7.0]
    again = Task.load(file, like=task)
    assert again.values == task.values and again.kind == "regression"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("NaN", "nan"),
        ("Infinity", "inf"),
        ('"high"', "'high'"),
        ('"3.5"', "'3.5'"),
        ("true", "True"),
        ("null", "null"),
        ("[1]", "[1]"),
        ("1" + "0" * 400, "1000"),
    ],
)
def test_a_cell_that_is_no_number_is_named_with_its_line(tmp_path, cell, shown) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(f'{json.dumps(ROWS[0])}\n{{"text": "b", "label": {cell}}}\n')
    with pytest.raises(DataError) as raised:
        Task.load(file, kind="regression")
    message = str(raised.value)
    assert message.startswith(f"{file} line 2: 'label' is ") and shown in message


@pytest.mark.parametrize("cell", ["nan", "inf", "high", "1_000", "", "1,5", "--1"])
def test_a_csv_cell_that_is_no_number(tmp_path, cell) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f'text,label\na,1\nb,"{cell}"\n')
    with pytest.raises(DataError, match="line 3: 'label'"):
        Task.load(file, kind="regression")


def test_a_missing_number_is_none_where_none_is_needed() -> None:
    task = Task.from_rows(ROWS, kind="regression")
    rows = [{"text": "a"}, {"text": "b", "label": None}, {"text": "c", "label": 2}]
    values = Task.from_rows(rows, like=task, require_labels=False).values
    assert math.isnan(values[0]) and math.isnan(values[1]) and values[2] == 2
    with pytest.raises(DataError, match="row 2: 'label' is null"):
        Task.from_rows([ROWS[0], rows[1]], kind="regression")
    assert task.parse({"text": "d", "label": 4.5}).value == 4.5
    assert Task.from_texts(["x"], like=task).kind == "regression"


def test_scalars_of_numpy_are_numbers() -> None:
    assert as_number(np.float32(0.5)) == 0.5
    assert as_number(np.int64(3)) == 3.0
    with pytest.raises(DataError):
        as_number(np.bool_(True))


def test_asking() -> None:
    task = Task.from_rows(ROWS, kind="regression")
    with pytest.raises(ConfigError, match="Did you mean 'regression'"):
        Task.from_rows(ROWS, kind="regresion")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="drop one of them"):
        Task.from_rows(ROWS, like=task, kind="classification")
    with pytest.raises(ConfigError, match="no classes"):
        Task.from_rows(ROWS, kind="regression", labels=["a", "b"])
    whole = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    assert Task.from_rows(whole).kind == "classification"
    assert Task.from_rows(whole, kind="regression").values == [1.0, 2.0]
    both = [{"text": "t", "question": "q", "choices": ["x", "y"], "answer": 0, "label": 0.5}]
    assert Task.from_rows(both).kind == "choice"
    assert Task.from_rows(both, kind="regression").values == [0.5]


def test_fractions_without_asking_are_an_error_that_says_how_to_ask(tmp_path) -> None:
    with pytest.raises(DataError, match=r"row 1: 'label' is 0.5; .*--task regression"):
        Task.from_rows(ROWS)
    file = tmp_path / "t.csv"
    file.write_text("text,label\na,0.5\nb,1\n")
    with pytest.raises(DataError, match=r"every label is a number, such as 0.5.*--task reg"):
        Task.load(file)
    assert list(Task.load(file, kind="classification").labels) == ["0.5", "1"]
    file.write_text("text,label\na,0.5\nb,none\n")
    assert len(Task.load(file).labels) == 2  # not all are numbers


def test_schema_hash_and_split() -> None:
    task = Task.from_rows([{"text": str(i), "label": i / 7} for i in range(20)], kind="regression")
    bare = Task.from_schema(json.loads(json.dumps(task.schema())))
    assert (bare.kind, bare.values, bare.fields) == ("regression", [], task.fields)
    other = Task.from_rows([{"text": str(i), "label": i / 8} for i in range(20)], kind="regression")
    assert task.hash != other.hash
    rest, out = task.split(0.2, seed=1)
    assert (len(rest), len(out)) == (16, 4)
    assert sorted([*rest.values, *out.values]) == task.values


def test_scaling() -> None:
    found = Scaling.of([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.std == pytest.approx(np.std([1.0, 2.0, 6.0]))
    with pytest.raises(DataError, match="t: every number is 7"):
        Scaling.of([7.0, 7.0], "t")
    with pytest.raises(DataError, match="too large"):
        Scaling.of([1.7e308, 1.7e308, 1.0])


def test_one_number_cannot_be_held_out() -> None:
    task = Task.from_rows([{"text": "a", "label": 1.5}], kind="regression")
    with pytest.raises(DataError, match="of 1 example: at least one is trained on"):
        task.split(0.5)
