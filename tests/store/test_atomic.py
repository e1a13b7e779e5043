"""A save that fails leaves what was there; nothing half-written is ever found."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import bayestune.store.model
from bayestune.errors import StoreError
from bayestune.files import (
    new_folder,
    read_json,
    recover,
    verify,
    write_json,
    write_text,
)
from bayestune.progress import silent
from bayestune.store import load
from bayestune.training import fit, resume

resource = pytest.importorskip("resource")
TEXTS = ["find my parcel", "login"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensors(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# saving a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "failure", "error"),
    [
        ("save_file", full_for_tensors, "No space left on device"),
        ("save_file", full, "No space left on device"),
        ("write_json", full, "No space left on device"),
        ("checksum", full, "No space left on device"),
        ("save_file", interrupt, None),
        ("write_json", interrupt, None),
    ],
)
def test_a_failing_save_leaves_the_previous_model(
    saved_kind, make, tmp_path, monkeypatch, place, failure, error
) -> None:
    trained, _ = saved_kind("diagonal")
    trained.save(tmp_path / "model")
    before = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}
    other = make(seed=5)
    monkeypatch.setattr(bayestune.store.model, place, failure)
    for folder in ("model", "new"):
        if error is None:
            with pytest.raises(KeyboardInterrupt):
                other.save(tmp_path / folder)
        else:
            with pytest.raises(StoreError, match=rf"{folder} could not be written: .*{error}"):
                other.save(tmp_path / folder)
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()} == before
    assert torch.equal(load(tmp_path / "model").predict(TEXTS).probs, trained.predict(TEXTS).probs)


@pytest.mark.parametrize("limit", [500, 5_000, 12_000])
def test_a_full_disk_leaves_the_previous_model(saved_kind, make, tmp_path, limit) -> None:
    """The system itself refuses to write on: in text files and in tensors."""
    trained, _ = saved_kind("diagonal")
    trained.save(tmp_path / "model")
    other = make(seed=5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StoreError, match=r"model could not be written: .*File too large"):
            other.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load(tmp_path / "model").predict(TEXTS).probs, trained.predict(TEXTS).probs)


def test_a_full_disk_in_training_leaves_the_last_checkpoint(make, clear, tmp_path) -> None:
    saves: list[Path] = []
    save = resume.save_checkpoint

    def save_twice(folder: Path, *arguments: Any) -> None:
        if len(saves) == 2:
            full()
        saves.append(folder)
        save(folder, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "save_checkpoint", save_twice)
        with pytest.raises(OSError, match="No space left"):
            fit(make(), clear, out=tmp_path / "run", progress=silent)
    run = fit(make(), clear, out=tmp_path / "run", resume=True, progress=silent)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    load(tmp_path / "run")


def test_a_model_replaces_a_model_and_nothing_else(make, tmp_path) -> None:
    model = make()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "notes", tmp_path):
        with pytest.raises(StoreError, match="holds something else than a model; give a new fold"):
            model.save(place)
    (tmp_path / "file").write_text("text")
    with pytest.raises(StoreError, match="holds something else than a model"):
        model.save(tmp_path / "file")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "text"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        model.save(tmp_path / "empty")
        model.save(tmp_path / "a" / "new" / "place")
    assert load(tmp_path / "empty").labels == load(tmp_path / "a/new/place").labels


def test_a_place_that_cannot_be_written_is_named(make, tmp_path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(StoreError, match="file/model could not be written: "):
        make().save(tmp_path / "file" / "model")


# folders and files ------------------------------------------------------------------------------


@pytest.fixture
def swap_fails(monkeypatch) -> Callable[[int], None]:
    """Let the n-th renaming of a folder fail."""

    def at(call: int) -> None:
        calls: list[Path] = []
        replace = Path.replace

        def failing(self: Path, target: Path) -> Path:
            calls.append(self)
            if len(calls) == call:
                raise OSError(errno.EIO, "Input/output error")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", failing)

    return at


@pytest.mark.parametrize("call", [1, 2])
def test_a_folder_that_cannot_be_swapped_in_leaves_the_old_one(tmp_path, swap_fails, call) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")
    swap_fails(call)
    with pytest.raises(StoreError, match="a could not be written: Input/output error"):  # noqa: SIM117
        with new_folder(tmp_path / "a") as folder:
            (folder / "x").write_text("new")
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "old"


def killed_between_the_renames(folder: Path) -> None:
    """Leave what a process leaves that is killed after the first rename of `new_folder`."""
    folder.replace(folder.with_name(f".{folder.name}.abcd1234.old"))


def test_what_a_killed_process_left_is_put_back(tmp_path) -> None:
    for name in ("a", "a.b"):
        with new_folder(tmp_path / name) as folder:
            (folder / "x").write_text(name)
        killed_between_the_renames(tmp_path / name)
    recover(tmp_path / "a")
    assert (tmp_path / "a" / "x").read_text() == "a" and not (tmp_path / "a.b").exists()
    with new_folder(tmp_path / "a.b") as folder:
        assert (tmp_path / "a.b" / "x").read_text() == "a.b"
        (folder / "x").write_text("new")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "a.b"]
    assert (tmp_path / "a.b" / "x").read_text() == "new"


def test_what_a_killed_process_left_goes_where_the_new_one_is_there(tmp_path) -> None:
    for text in ("old", "new"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text(text)
        if text == "old":
            killed_between_the_renames(tmp_path / "a")
    recover(tmp_path / "a")
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "new"


def test_a_folder_is_replaced_as_a_whole(tmp_path) -> None:
    for name in ("x", "y"):
        with new_folder(tmp_path / "deep" / "a") as folder:
            assert not any(folder.iterdir())
            (folder / name).write_text(name)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["a"]
    assert [f.name for f in (tmp_path / "deep" / "a").iterdir()] == ["y"]


def test_an_error_of_the_caller_passes_through(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a"):
        _ = 1 / 0
    assert not any(tmp_path.iterdir())


def test_text_is_written_as_a_whole(tmp_path, monkeypatch) -> None:
    file = tmp_path / "sub" / "file.txt"
    write_text(file, "älter\n")
    assert file.read_text(encoding="utf-8") == "älter\n"
    assert file.stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"file\.txt could not be written: No space left on dev"):
        write_text(file, "neuer\n")
    assert [f.name for f in file.parent.iterdir()] == ["file.txt"]
    assert file.read_text(encoding="utf-8") == "älter\n"


def test_a_link_stays_and_its_target_is_replaced(tmp_path) -> None:
    target, link = tmp_path / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "through")
        assert os.read(reader, 100) == b"through"
        assert pipe.is_fifo()
    finally:
        os.close(reader)
    # An open file by another name: replacing it would lose what its owner sees.
    with (tmp_path / "out").open("w+") as stream:
        write_text(Path(f"/proc/self/fd/{stream.fileno()}"), "seen")
        assert stream.read() == "seen"
    with pytest.raises(StoreError, match=r"/dev/full could not be written: No space left"):
        write_text(Path("/dev/full"), "x")


def test_json_keeps_every_bit_of_a_number(tmp_path) -> None:
    data = {"x": 0.1 + 0.2, "ü": [1, None, True], "tiny": 5e-324}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")
    with pytest.raises(StoreError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")
    with pytest.raises(StoreError, match="is damaged: "):
        read_json(tmp_path)


def test_checksums_are_compared_file_by_file(tmp_path) -> None:
    (tmp_path / "a").write_text("abc")
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    verify(tmp_path, {"a": right})
    with pytest.raises(StoreError, match="a is damaged or was changed"):
        verify(tmp_path, {"a": right[:-1] + "e"})
    with pytest.raises(StoreError, match="b is missing; the model is incomplete"):
        verify(tmp_path, {"a": right, "b": right})
    for name in ("../a", "/a", "sub/a", ".."):
        with pytest.raises(StoreError, match=r"names a file outside itself|is missing"):
            verify(tmp_path, {name: right})
