from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from bayestune.data import Task, hub, read_rows
from bayestune.data.hub import HubSource, parse_hub
from bayestune.errors import DataError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf:imdb", HubSource("imdb")),
        ("hf:imdb:test", HubSource("imdb", None, "test")),
        ("hf:org/name", HubSource("org/name")),
        ("hf:org/name:test", HubSource("org/name", None, "test")),
        ("hf:org/name/config", HubSource("org/name", "config")),
        ("hf:org/name/my config:dev", HubSource("org/name", "my config", "dev")),
        ("hf:org/na.me-1:train[:100]", HubSource("org/na.me-1", None, "train[:100]")),
    ],
)
def test_parse_hub(spec, expected):
    assert parse_hub(spec) == expected


@pytest.mark.parametrize(
    "spec", ["hf:", "hf::test", "hf:a:", "hf:a/b/c/d", "hf:/b", "hf:a/", "hf:a/b/", "hf:a b", "a/b"]
)
def test_parse_hub_refuses_other_forms(spec):
    with pytest.raises(DataError, match="is not hf:ORG/NAME"):
        parse_hub(spec)


class Split(list):
    features: ClassVar = {"text": SimpleNamespace(), "label": SimpleNamespace(names=["neg", "pos"])}


def test_rows_and_class_names_come_from_the_data_set(monkeypatch):
    asked = []
    rows = Split([{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": 0}])
    monkeypatch.setattr(hub, "load_split", lambda source: asked.append(source) or rows)
    assert list(read_rows("hf:o/n/c:test", limit=2)) == list(enumerate(rows[:2], start=1))
    task = Task.from_hub("o/n:test")
    assert asked == [HubSource("o/n", "c", "test"), HubSource("o/n", None, "test")]
    assert list(task.labels) == ["neg", "pos"]
    assert task.targets == [1, 0, 0]
    assert task.source == "hf:o/n:test"


def test_hidden_labels_name_the_row(monkeypatch):
    rows = Split([{"text": "a", "label": 1}, {"text": "b", "label": -1}])
    monkeypatch.setattr(hub, "load_split", lambda _: rows)
    with pytest.raises(DataError, match="hf:o/n row 2: label -1 marks"):
        Task.load("hf:o/n")
    assert Task.load("hf:o/n", require_labels=False).targets == [1, -1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError("no data set\n there"),
            r"hf:o/n: cannot be loaded \(no data set there\)",
        ),
        (ConnectionError(), r"cannot be loaded \(ConnectionError\)"),
        (ImportError("datasets"), r"pip install 'bayestune\[data\]'"),
    ],
)
def test_loading_errors_are_data_errors(monkeypatch, error, message):
    def fail(_):
        raise error

    monkeypatch.setattr(hub, "load_split", fail)
    with pytest.raises(DataError, match=message):
        list(read_rows("hf:o/n"))


def test_empty_split(monkeypatch):
    monkeypatch.setattr(hub, "load_split", lambda _: Split())
    with pytest.raises(DataError, match="hf:o/n: has no rows"):
        list(read_rows("hf:o/n"))


def test_load_split_passes_name_config_and_split(monkeypatch):
    calls = []
    fake = SimpleNamespace(load_dataset=lambda *a, **k: calls.append((a, k)))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    hub.load_split(HubSource("o/n", "c", "dev"))
    assert calls == [(("o/n", "c"), {"split": "dev"})]
