"""Every bad input of training and evaluation: one sentence with file and line, exit 2."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import safetensors.torch
from cli_checks import complaint, files_under
from safetensors import SafetensorError

import bayestune
from bayestune.store import model as store

GOOD = [{"text": "my parcel", "label": "parcel"}, {"text": "my login", "label": "login"}]


def lines(*rows) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


@pytest.mark.parametrize(
    ("content", "where", "said"),
    [
        (b"", "", "has no rows"),
        (b"\n\n", "", "has no rows"),
        (lines(GOOD[0], GOOD[0]), "", "every label is 'parcel'"),
        (lines(*GOOD, {"text": "a", "label": float("nan")}), " line 3", "is nan; a label is"),
        (lines(*GOOD, {"text": "a", "label": None}), " line 3", "null"),
        (lines(*GOOD, {"text": "a"}), " line 3", "no 'label'"),
        (lines(*GOOD, {"txt": "a", "label": "login"}), " line 3", "Did you mean 'txt'?"),
        (lines(*GOOD, {"text": 7, "label": "login"}), " line 3", "expected a string"),
        (lines(GOOD[0], b'{"text": "a", "label'), " line 2", "breaks off"),
        (lines(GOOD[0], b"text: a"), " line 2", "not valid JSON"),
        (bytes(range(256)) * 4, " line 1", "NUL bytes"),
        (b"\xff" * 40, " line 1", "not UTF-8"),
        (b"PK\x03\x04\x14\x00" * 9, " line 1", "NUL bytes"),
    ],
)
def test_training_data(cli, llama_base, tmp_path, content, where, said) -> None:
    data = tmp_path / "train.jsonl"
    data.write_bytes(content)
    arguments = ("train", "--model", llama_base, "--data", data, "--out", tmp_path / "run")
    sentence = complaint(cli(*arguments, code=None))
    assert sentence.startswith(f"{data}{where}"), sentence
    assert said in sentence
    assert not (tmp_path / "run").exists()


def test_labels_of_two_types_name_both_lines(cli, llama_base, tmp_path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_bytes(lines(*GOOD, {"text": "a", "label": 3}))
    arguments = ("train", "--model", llama_base, "--data", data, "--out", tmp_path / "run")
    sentence = complaint(cli(*arguments, code=None))
    assert f"{data} line 3 has 3" in sentence
    assert f"{data} line 1 has 'parcel'" in sentence


def test_missing_files_name_the_nearest(cli, llama_base, files, tmp_path) -> None:
    arguments = ("train", "--model", llama_base, "--out", tmp_path / "run", "--data")
    sentence = complaint(cli(*arguments, files["train"].with_name("tran.jsonl"), code=None))
    assert "Did you mean 'train.jsonl'?" in sentence
    assert "is a directory" in complaint(cli(*arguments, tmp_path, code=None))
    assert "suffix '.txt'" in complaint(
        cli(*arguments, shutil.copy(files["train"], tmp_path / "a.txt"), code=None)
    )


def test_unknown_labels(cli, run_folder, train_arguments, tmp_path) -> None:
    data = tmp_path / "other.jsonl"
    data.write_bytes(lines(*GOOD, {"text": "a", "label": "logn"}))
    for arguments in (
        ("eval", run_folder, "--data", data),
        (*train_arguments, "--val", data, "--out", tmp_path / "run"),
    ):
        sentence = complaint(cli(*arguments, code=None))
        assert sentence.startswith(f"{data} line 3: ")
        assert "Did you mean 'login'?" in sentence


def test_evaluation_stops_at_the_first_bad_line(cli, run_folder, tmp_path) -> None:
    data = tmp_path / "test.jsonl"
    data.write_bytes(lines(GOOD[0], b"[1]", b"[2]"))
    result = cli("eval", run_folder, "--data", data, "--json", code=None)
    assert complaint(result).startswith(f"{data} line 2: expected a JSON object")
    assert result.stdout == ""
    data.write_bytes(b"")
    assert "has no rows" in complaint(cli("eval", run_folder, "--data", data, code=None))


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_what_is_not_a_run(cli, verb, run_folder, files, tmp_path) -> None:
    def ask(folder):
        return complaint(cli(verb, folder, *extra, code=None))

    extra = ("--data", files["test"]) if verb == "eval" else (files["test"],)
    assert f"{tmp_path} is not a run" in ask(tmp_path)
    assert f"{tmp_path / 'no'} does not exist" in ask(tmp_path / "no")
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    posterior = copy / "model" / "posterior.safetensors"
    whole = posterior.read_bytes()
    posterior.write_bytes(whole[:-8] + bytes(8))
    assert f"{posterior} is damaged" in ask(copy)
    posterior.unlink()
    assert f"{posterior} is missing" in ask(copy)
    posterior.write_bytes(whole)
    manifest = copy / "model" / "bayestune.json"
    manifest.write_text(manifest.read_text()[:100])
    assert f"{manifest} is damaged" in ask(copy)


def test_a_full_disk_at_the_start(cli, train_arguments, tmp_path, monkeypatch) -> None:
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "run"
    sentence = complaint(cli(*train_arguments, "--out", out, code=None))
    assert str(out) in sentence
    assert "No space left on device" in sentence


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_full_disk_at_the_end_keeps_the_old_model(
    cli, train_arguments, run_folder, tmp_path, monkeypatch, error
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out)
    before = files_under(out / "model")

    def full(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", full)
        result = cli(*train_arguments, "--out", out, "--overwrite", "epochs=1", code=None)
    sentence = complaint(result)
    assert str(out / "model") in sentence
    assert "No space left on device" in sentence
    assert files_under(out / "model") == before
    bayestune.load(out)
    assert safetensors.torch.load_file(out / "model" / "posterior.safetensors")
