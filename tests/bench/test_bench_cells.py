"""Cells on disk: what is written reads back, whole or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from bench_checks import made_cell

from bayestune.bench import Key, is_written, read, read_arrays
from bayestune.bench import cell as cells
from bayestune.errors import StoreError

KEY = Key("topics", "mle", 1, 1e-3)


def test_round_trip(suite, tmp_path):
    assert not is_written(KEY, tmp_path)
    made = made_cell(suite, tmp_path, KEY, 0.25, losses=[0.1, 0.2, 0.3])
    assert is_written(KEY, tmp_path)
    assert read(KEY, tmp_path) == made
    assert read(KEY, tmp_path).seconds == 2.0
    arrays = read_arrays(KEY, tmp_path)
    assert arrays["probs"][:, 0].log().neg().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert KEY.folder(tmp_path) == tmp_path / "cells/topics/mle/seed1-lr0.001"
    assert str(KEY) == "topics mle seed 1 lr 0.001"


def test_a_failure_is_plain_json(suite, tmp_path):
    made = made_cell(suite, tmp_path, KEY, error="The loss is nan.")
    assert made.val_nll == float("inf")
    assert read(KEY, tmp_path) == made

    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    text = (KEY.folder(tmp_path) / "cell.json").read_text()
    assert json.loads(text, parse_constant=refuse)["val_nll"] is None


def test_cells_without_a_record_of_rates_read(suite, tmp_path):
    made_cell(suite, tmp_path, KEY)
    path = KEY.folder(tmp_path) / "cell.json"
    content = json.loads(path.read_text())
    del content["rates"]
    path.write_text(json.dumps(content))
    assert read(KEY, tmp_path).rates == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"key": []}', '"x"', '{"key": {"task": "x"}, "error": ""}', "\xff"],
)
def test_damaged_numbers(text, suite, tmp_path):
    made_cell(suite, tmp_path, KEY)
    (KEY.folder(tmp_path) / "cell.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"seed1-lr0\.001 is damaged .*remove that folder"):
        read(KEY, tmp_path)


def test_missing_numbers(tmp_path):
    with pytest.raises(StoreError, match=r"cell\.json is missing"):
        read(KEY, tmp_path)


def test_damaged_arrays(suite, tmp_path):
    made_cell(suite, tmp_path, KEY)
    path = KEY.folder(tmp_path) / "arrays.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match=r"arrays\.safetensors is damaged .*remove that folder"):
        read_arrays(KEY, tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match=r"arrays\.safetensors is damaged"):
        read_arrays(KEY, tmp_path)


@pytest.mark.parametrize("step", ["save_file", "write_json"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_half_a_cell_is_none(step, error, suite, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cells, step, fail)
    with pytest.raises((StoreError, KeyboardInterrupt)):
        made_cell(suite, tmp_path, KEY)
    assert not is_written(KEY, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cell_that_is_replaced_is_never_half(suite, tmp_path, monkeypatch):
    before = made_cell(suite, tmp_path, KEY, 0.5)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cells, "write_json", fail)
    with pytest.raises(StoreError):
        made_cell(suite, tmp_path, KEY, 0.1, losses=[3.0])
    assert read(KEY, tmp_path) == before
    assert len(read_arrays(KEY, tmp_path)["targets"]) == 2


def test_arrays_hold_what_the_numbers_came_from(complete):
    from bayestune import metrics

    key = Key("topics", "polar_vbll", 1, complete.rate("topics", "polar_vbll"))
    cell, arrays = read(key, complete.out), read_arrays(key, complete.out)
    probs, targets = arrays["probs"], arrays["targets"]
    assert probs.shape == (40, 3) and probs.dtype == torch.float32
    assert metrics.accuracy(probs, targets) == pytest.approx(cell.metrics["accuracy"])
    assert metrics.ece(probs, targets) == pytest.approx(cell.metrics["ece"], abs=1e-6)
    val_nll = metrics.nll(arrays["val.probs"], arrays["val.targets"])
    assert val_nll == pytest.approx(cell.val_nll, rel=1e-5)
    for name in ("max_prob", "entropy", "mutual_information", "density"):
        found = metrics.auroc(arrays[f"score.{name}"], arrays[f"ood.foreign.{name}"])
        assert found == pytest.approx(cell.ood["foreign"][f"auroc_{name}"], abs=1e-6)
