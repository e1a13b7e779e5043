"""Folders that lead outside themselves are neither read nor written through."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bayestune.errors import StoreError
from bayestune.evaluation import evaluate, record
from bayestune.files import write_text
from bayestune.serve import Runs
from bayestune.store import load, read_card, save_guarantees, save_update

SECRET = "a key\n"
NAMES = [
    "README.md",
    "guarantees.json",
    "bayestune.json",
    "posterior.safetensors",
    "evaluation.json",
]


@pytest.fixture
def outside(tmp_path) -> Path:
    file = tmp_path / "elsewhere" / "secret"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


@pytest.mark.parametrize("name", NAMES)
def test_links_outside_are_refused_by_all_that_reads_and_writes(
    saved_kind, copied, outside, clear_test, tmp_path, name
) -> None:
    folder, model = copied(), saved_kind("diagonal")[0]
    found = evaluate(model, clear_test.limit(20))
    target = outside
    if (folder / name).exists():  # the file itself, so that every checksum fits
        target = Path(shutil.move(folder / name, outside.with_name(name)))
    (folder / name).symlink_to(os.path.relpath(target, folder))
    before = target.read_bytes()
    for use in (
        lambda: load(folder),
        lambda: Runs([str(folder)]),
        lambda: save_guarantees(model, folder),
        lambda: save_update(model, folder),
        lambda: save_update(model, folder, tmp_path / "out"),
        lambda: record(model, found, clear_test, folder),
    ):
        with pytest.raises(StoreError, match=rf"{name} is a link that leads outside its folder"):
            use()
    assert target.read_bytes() == before and not (tmp_path / "out").exists()


def test_a_model_that_lies_outside_its_run_is_refused(copied, tmp_path) -> None:
    folder, run = copied(), tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(folder)
    with pytest.raises(StoreError, match=r"is a link that leads outside .*run: name the"):
        load(run)
    (tmp_path / "latest").symlink_to(folder)
    assert load(tmp_path / "latest").labels.names == load(folder).labels.names


def test_links_within_a_folder_and_the_hubs_own_are_followed(copied, tmp_path) -> None:
    folder = copied()
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load(snapshot).labels.names == load(folder).labels.names
    (folder / "card").symlink_to("README.md")
    load(folder)


@pytest.mark.parametrize("kind", ["nothing", "loop", "pipe", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(copied, kind) -> None:
    file = copied() / "guarantees.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere" if kind == "nothing" else file.name)
    with pytest.raises(StoreError, match=r"guarantees\.json"):
        load(file.parent)


def test_a_file_that_is_a_link_to_itself_cannot_be_written(tmp_path) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(StoreError, match="could not be written"):
        write_text(tmp_path / "a", "x")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"\x80"])
def test_a_card_that_cannot_be_read_says_how_to_get_one(copied, content) -> None:
    folder = copied()
    (folder / "README.md").unlink()
    if content is not None:
        (folder / "README.md").write_bytes(content)
    for use in (read_card, lambda place: Runs([str(place)])):
        with pytest.raises(StoreError, match=r"README\.md cannot be read: .* bayestune calibrate"):
            use(folder)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' + b"9" * 5_000 + b"}"])
@pytest.mark.parametrize("name", ["bayestune.json", "guarantees.json"])
def test_json_without_end_is_damage(copied, content, name) -> None:
    folder = copied()
    (folder / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        load(folder)


def test_an_update_of_a_description_without_checksums_is_refused(saved_kind, copied) -> None:
    from test_damage import describe

    folder = copied()
    describe(folder, lambda data: data.pop("checksums"))
    with pytest.raises(StoreError, match=r"another version .* no checksums"):
        save_update(saved_kind("diagonal")[0], folder)


@pytest.mark.parametrize(
    "change",
    [
        {"data": "x"},
        {"metrics": {"nll": "low"}},
        {"bins": [[0, 1]]},
        {"intervals": {"nll": [0]}},
        {"rules": 3},
    ],
)
def test_a_measurement_of_another_form_is_not_stated(copied, caplog, change) -> None:
    from bayestune.store import read_measured
    from bayestune.store.manifest import digest_of, read_manifest

    folder = copied()
    model, digest = load(folder), read_manifest(folder)["digest"]
    from toy_tasks import topic_rows

    from bayestune.data import Task

    task = Task.from_rows(topic_rows(20, 5), like=None)
    record(model, evaluate(model, task), task, folder)
    file = folder / "evaluation.json"
    data = json.loads(file.read_text())
    assert read_measured(folder, digest) == data
    data |= change
    file.write_text(json.dumps({**data, "digest": digest_of(data)}))
    assert read_measured(folder, digest) is None
    assert "is damaged or was changed" in caplog.text
