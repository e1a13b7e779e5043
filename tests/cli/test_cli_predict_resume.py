"""``bayestune predict --resume``: a prediction that was broken off goes on, and doubles nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_checks import complaint, files_under, write_rows
from toy_tasks import topic_rows

from bayestune.cli import predict as predict_verb
from bayestune.scoring.job import Job


@pytest.fixture
def rows(tmp_path) -> Path:
    """Forty rows in five chunks, with a bad line in the first and the last."""
    rows: list[Any] = topic_rows(40, 4)
    rows[3] = rows[38] = {"no": "text"}
    return write_rows(tmp_path / "in.jsonl", rows)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Chunks of eight rows."""
    monkeypatch.setattr(predict_verb, "AHEAD", 2)


def broken_off(cli, monkeypatch, at: int, *command: Any) -> None:
    """Run a command that ends in the middle of its n-th chunk."""
    predict, chunks = Job._predict, 0

    def until(self: Job, some: Any) -> Any:
        nonlocal chunks
        chunks += 1
        for i, row in enumerate(predict(self, some)):
            if chunks == at and i == 3:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_predict", until)
        cli(*command, code=130)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_it_goes_on_where_it_was(
    cli, run_folder, rows, tmp_path, monkeypatch, small_chunks, at
) -> None:
    command = ("predict", run_folder, rows, "--batch-size", "4", "--out")
    whole = cli(*command, tmp_path / "whole.jsonl")
    assert "38 rows predicted" in whole.stderr and "2 bad lines" in whole.stderr
    out = tmp_path / "there" / "out.jsonl"
    broken_off(cli, monkeypatch, at, *command, out, "--resume")
    assert not out.exists()
    with out.with_name("out.jsonl.partial").open("a") as stream:
        stream.write('{"half a ro')
    result = cli(*command, out, "--resume")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    assert "38 rows predicted" in result.stderr and "2 bad lines" in result.stderr
    assert ("going on after" in result.stderr) == (at > 1)


def test_another_command_does_not_go_on(
    cli, run_folder, runs, rows, tmp_path, monkeypatch, small_chunks
) -> None:
    out = tmp_path / "there" / "out.jsonl"
    command = ("predict", run_folder, rows, "--batch-size", "4", "--out", out, "--resume")
    broken_off(cli, monkeypatch, 3, *command)
    before = files_under(out.parent)
    for other in (
        ("predict", runs["mle"][0], *command[2:]),
        (*command, "--samples", "0"),
        ("predict", run_folder, write_rows(tmp_path / "other.jsonl", topic_rows(9)), *command[3:]),
    ):
        assert "written with another model, file or options" in complaint(cli(*other, code=None))
    assert files_under(out.parent) == before
    notes = out.with_name("out.jsonl.partial.json")
    noted = json.loads(notes.read_text())
    notes.write_text(json.dumps({**noted, "size": noted["size"] + 10**6}))
    assert "is shorter than was noted" in complaint(cli(*command, code=None))
    notes.write_text(json.dumps({"of": noted["of"], "good": 1, "other": 1}))
    assert "is damaged; remove it" in complaint(cli(*command, code=None))
    notes.unlink()
    cli(*command)
    assert len(out.read_text().splitlines()) == 38


@pytest.mark.parametrize("out", [(), ("--out", "o.jsonl"), ("--out", "o.parquet")])
def test_it_needs_two_files_of_lines(cli, run_folder, rows, out) -> None:
    file = () if out == ("--out", "o.jsonl") else (rows,)
    result = cli("predict", run_folder, *file, *out, "--resume", code=None)
    assert "from a FILE on disk with an --out of JSON lines" in complaint(result)
