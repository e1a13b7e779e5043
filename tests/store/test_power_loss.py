"""What is on the disk before the next thing is done: a name only after its content, an old state
only until the new one's name is there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from bayestune.cli.partial import growing_file
from bayestune.errors import StoreError
from bayestune.files import discard, new_folder, write_text
from bayestune.peft.export import write_lora

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


@pytest.fixture
def done(tmp_path, monkeypatch) -> list[str]:
    """Record in order what is synced, renamed and removed; of temporary names only their kind."""
    seen: list[str] = []

    def plain(path: object) -> str:
        parts = os.path.relpath(str(path), tmp_path).split("/")
        return "/".join(
            p.rsplit(".", 1)[1] if p.startswith(".") and len(p) > 1 else p for p in parts
        )

    def record(module, name, show) -> None:
        do = getattr(module, name)

        def recorded(*args, **options):
            seen.append(show(*args))
            return do(*args, **options)

        monkeypatch.setattr(module, name, recorded)

    record(os, "fsync", lambda handle: f"sync {plain(Path(f'/proc/self/fd/{handle}').readlink())}")
    record(os, "replace", lambda old, new: f"{plain(old)} > {plain(new)}")
    record(shutil, "rmtree", lambda path: f"rm {plain(path)}")
    return seen


def test_a_file_has_its_content_before_its_name(tmp_path, done) -> None:
    write_text(tmp_path / "a" / "b" / "x.json", "{}")
    folders = ["sync a", "sync ."]  # that were not there
    assert done == [*folders, "sync a/b/new", "a/b/new > a/b/x.json", "sync a/b"]


def test_an_old_folder_stays_until_the_new_one_is_on_the_disk(tmp_path, done) -> None:
    for _ in range(2):
        done.clear()
        with new_folder(tmp_path / "run") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "x").write_text("x")
    assert sorted(done[:3]) == ["sync new", "sync new/deep", "sync new/deep/x"]
    assert done[3:7] == ["run > old", "new > run", "sync .", "rm old"]


def test_a_folder_is_gone_from_its_place_before_its_files_go(tmp_path, done) -> None:
    (tmp_path / "run").mkdir()
    discard(tmp_path / "run")
    assert done == ["run > gone", "sync .", "rm gone"]


def test_predictions_and_adapters_have_their_content_before_their_names(tmp_path, done) -> None:
    with growing_file(tmp_path / "out.jsonl", {}) as (stream, _, _):
        stream.write("{}\n")
    assert done == ["sync out.jsonl.partial", "out.jsonl.partial > out.jsonl", "sync ."]
    done.clear()
    write_lora(tmp_path, {}, {"x": torch.zeros(1)})
    assert done[:2] == ["sync partial", "partial > adapter_model.safetensors"]


def test_what_cannot_be_synced_is_an_error_but_for_folders_that_know_no_such_thing(
    tmp_path, monkeypatch
) -> None:
    fsync, code = os.fsync, errno.EINVAL

    def refusing(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_dir():
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    write_text(tmp_path / "x", "x")
    code = errno.EIO
    with pytest.raises(StoreError, match="Input/output error"):
        write_text(tmp_path / "y", "y")
