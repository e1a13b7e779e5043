"""``bayestune export``: one sentence on what was written; exit 2 with a reason where it cannot."""

from __future__ import annotations

import json

import pytest
from cli_checks import complaint


@pytest.mark.parametrize("form", ["lora", "merged", "vllm", "gguf-ready"])
def test_it_writes_every_form(cli, run_folder, tmp_path, form) -> None:
    out = tmp_path / "out"
    result = cli("export", run_folder, "--to", form, "--out", out, "--check")
    assert result.stdout == f"exported to {out}\n"
    found = json.loads((out / "export.json").read_text())
    assert found["form"] == form and found["largest_difference"] < 1e-5
    assert (out / "README.md").is_file()


def test_it_takes_a_precision_and_the_size_of_a_file(cli, runs, tmp_path) -> None:
    out = tmp_path / "out"
    run, _ = runs["mle"]
    more = ("--dtype", "bfloat16", "--shard-size", "40KB", "--device", "cpu")
    cli("export", run, "--to", "merged", "--out", out, *more)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (out / "model.safetensors.index.json").is_file()


def test_an_earlier_export_is_replaced_only_when_told(cli, run_folder, tmp_path) -> None:
    out = tmp_path / "out"
    cli("export", run_folder, "--to", "lora", "--out", out)
    again = cli("export", run_folder, "--to", "vllm", "--out", out, code=None)
    assert "--overwrite" in complaint(again)
    cli("export", run_folder, "--to", "vllm", "--out", out, "--overwrite")
    assert (out / "embed").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "loar"), "Did you mean 'lora'?"),
        (("--to", "lora", "--samples", 3), "over the last layer, which --to vllm"),
        (("--to", "lora", "--device", "abacus"), "abacus"),
    ],
)
def test_bad_input_is_one_sentence_and_2(cli, run_folder, tmp_path, arguments, words) -> None:
    out = tmp_path / "out"
    result = cli("export", run_folder, "--out", out, *arguments, code=None)
    assert words in complaint(result)
    assert not out.exists() and result.stdout == ""


def test_no_run_no_export(cli, tmp_path) -> None:
    out = tmp_path / "out"
    result = cli("export", tmp_path / "nowhere", "--to", "lora", "--out", out, code=None)
    assert "does not exist" in complaint(result)
    assert "--to" in cli("export", tmp_path, "--out", out, code=2).stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    result = cli("export", tmp_path, "--to", "lora", "--out", tmp_path / "mine", code=None)
    assert "something else than an export" in complaint(result)
