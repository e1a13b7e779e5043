"""``bayestune report``: from a benchmark's folder to a file, or one sentence and exit status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_benchmark import made_suite
from toy_tasks import foreign_texts, topic_rows
from typer.testing import CliRunner

from bayestune.bench import Plan, write_plan
from bayestune.cli.app import app


def command(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def complaint(*arguments: object) -> str:
    result = command(*arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.startswith("bayestune: ")
    return result.stderr


@pytest.mark.parametrize(
    ("suffix", "start"), [(".html", "<!doctype html>"), (".md", "# made up"), (".tex", "% ")]
)
def test_the_suffix_chooses_the_form(folder, suffix, start, tmp_path) -> None:
    path = tmp_path / "new" / f"report{suffix}"
    result = command("report", folder, "-o", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert str(path) in result.stderr
    assert path.read_text().startswith(start)


def test_the_reference_can_be_chosen(folder, tmp_path) -> None:
    path = tmp_path / "report.md"
    assert command("report", folder, "-o", path, "--reference", "temperature").exit_code == 0
    assert "| NLL − temperature [95 %] |" in path.read_text()
    assert "Did you mean 'mle'" in complaint("report", folder, "--reference", "mla", "-o", path)


def test_what_cannot_be_reported_is_said_and_nothing_is_written(folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    assert "There is no folder" in complaint("report", tmp_path / "nowhere", "-o", out)
    assert "suite.json is missing" in complaint("report", tmp_path, "-o", out)
    suite = made_suite()
    write_plan(Plan.of(suite, tmp_path / "empty", list(suite.tasks), list(suite.rows), 3))
    assert "holds no finished training" in complaint("report", tmp_path / "empty", "-o", out)
    assert ".html, .md, .tex" in complaint("report", folder, "-o", tmp_path / "report.pdf")
    (tmp_path / "a.md").mkdir()
    assert "is a directory" in complaint("report", folder, "-o", tmp_path / "a.md")
    assert not out.exists()


def test_what_bench_wrote_can_be_reported(llama_base: Path, tmp_path: Path) -> None:
    rows = {
        "train": topic_rows(60),
        "val": topic_rows(30, 1),
        "test": topic_rows(40, 2),
        "oos": [{"text": text} for text in foreign_texts(20)],
    }
    for name, each in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in each)
        (tmp_path / f"{name}.jsonl").write_text(text)
    suite = {
        "recipe": {
            "model": str(llama_base),
            "adapter": {"rank": 4, "layers": "top:2"},
            "train": {"epochs": 1, "head_lr": 0.05},
        },
        "rates": {"lora": [0.002], "polar": [0.004]},
        "seeds": 1,
        "tasks": {
            "topics": {
                **{part: f"{part}.jsonl" for part in ("train", "val", "test")},
                "ood": {"foreign": "oos.jsonl"},
            }
        },
        "rows": {
            "mle": {},
            "temperature": {"start": "mle"},
            "polar_vbll": {"recipe": {"train": {"kl": 1.0}}},
        },
    }
    (tmp_path / "own.yaml").write_text(json.dumps(suite))
    out = tmp_path / "bench"
    result = command("bench", tmp_path / "own.yaml", "--data", tmp_path, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"bayestune report {out} -o report.html" in result.stderr
    assert command("report", out, "-o", tmp_path / "report.md").exit_code == 0
    report = (tmp_path / "report.md").read_text()
    table = result.stdout.strip()
    assert table in report
    assert "3 of 3 trainings are there" in report
    assert "point estimates, without epistemic uncertainty: mle, temperature." in report
    assert command("report", out, "-o", tmp_path / "report.html").exit_code == 0
