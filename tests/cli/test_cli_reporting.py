"""Every kind of exception becomes one sentence and its exit status."""

from __future__ import annotations

import errno
import json
import logging
import os

import pytest
from cli_checks import complaint

from bayestune import recipes
from bayestune.cli.stopping import Terminated
from bayestune.errors import NumericsError, StoreError
from bayestune.files import new_file
from bayestune.scoring.output import to_json


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StoreError("run/model is missing."), 2, "run/model is missing."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (KeyboardInterrupt("interrupted; resume"), 130, "interrupted; resume"),
        (Terminated("interrupted; resume"), 143, "interrupted; resume"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "a/b: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied."),
        (ConnectionError("no route\nto the Hub"), 2, "no route."),
        (MemoryError(), 1, "out of memory; lower"),
        (OutOfMemoryError("CUDA"), 1, "out of memory; lower"),
        (ZeroDivisionError("by zero\nsecond line"), 1, "ZeroDivisionError: by zero (BAYESTUNE"),
    ],
)
def test_exceptions(cli, monkeypatch, error, code, said) -> None:
    def names():
        raise error

    monkeypatch.setattr(recipes, "names", names)
    sentence = complaint(cli("config", "ls", code=None), code)
    assert said in sentence


def test_a_disk_full_names_the_way_out(cli, monkeypatch) -> None:
    def names():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recipes, "names", names)
    assert "TMPDIR or BAYESTUNE_CACHE" in complaint(cli("config", "ls", code=None))


def test_the_handler_of_a_verb_is_taken_away_again(cli) -> None:
    logger = logging.getLogger("bayestune")
    before = list(logger.handlers), logger.level
    cli("config", "ls", "--debug")
    assert (list(logger.handlers), logger.level) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_numbers_only(value) -> None:
    with pytest.raises(NumericsError, match="NaN or infinite"):
        to_json({"ece": value})


@pytest.mark.parametrize("text", ["größe", "a\u2028b", "half \ud800"])
def test_json_lines_are_text_that_can_be_encoded(text) -> None:
    line = to_json({"id": text})
    assert json.loads(line.encode()) == {"id": text}
    assert "\n" not in line


def test_a_new_file_appears_only_when_complete(tmp_path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    with new_file(path) as stream:
        stream.write("one\n")
        assert not path.exists()
    assert path.read_text() == "one\n"
    assert path.stat().st_mode & 0o777 == 0o644

    def broken():
        with new_file(path) as stream:
            stream.write("two\n")
            raise ValueError

    with pytest.raises(ValueError):
        broken()
    assert path.read_text() == "one\n"
    assert [p.name for p in path.parent.iterdir()] == ["out.jsonl"]


def test_a_new_file_says_why_it_cannot_be_written(tmp_path, monkeypatch) -> None:
    with pytest.raises(StoreError, match="is a directory"), new_file(tmp_path):
        pass

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"), new_file(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []
