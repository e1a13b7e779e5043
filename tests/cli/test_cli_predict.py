"""``bayestune predict``: order, ids, bad lines, streams, files that appear when complete."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cli_checks import complaint, read_lines, write_rows

import bayestune
from bayestune.data import LabelSet, Task
from bayestune.data.rows import RowSource
from bayestune.errors import DataError, NumericsError
from bayestune.posterior.predictive import Predictive
from bayestune.prediction import Prediction
from bayestune.scoring import output
from bayestune.scoring.job import Job
from bayestune.scoring.output import JsonLines

FIELDS = ["id", "label", "probs", "confidence", "entropy", "aleatoric", "epistemic", "ood_score"]
ROWS = [
    {"text": "where is my parcel", "id": "a"},
    {"text": "refund please"},
    {"text": "i cannot login today and i need help", "id": 7, "label": ["not", "looked", "at"]},
    {"text": ""},
    {"text": "volcano", "label": "no such class"},
]


def test_fields_order_and_numbers(cli, run_folder, tmp_path) -> None:
    file = write_rows(tmp_path / "in.jsonl", ROWS)
    result = cli("predict", run_folder, file)
    found = read_lines(result.stdout)
    assert [list(row) for row in found] == [FIELDS] * 5
    assert [row["id"] for row in found] == ["a", 2, 7, 4, 5]
    prediction = bayestune.load(run_folder).predict([row["text"] for row in ROWS])
    for i, row in enumerate(found):
        assert list(row["probs"]) == ["login", "parcel", "refund"]
        assert math.isclose(sum(row["probs"].values()), 1, abs_tol=1e-6)
        assert row["label"] == max(row["probs"], key=row["probs"].__getitem__)
        assert row["confidence"] == max(row["probs"].values())
        assert math.isclose(row["entropy"], row["aleatoric"] + row["epistemic"], abs_tol=1e-5)
        # Every digit of what the library says.
        assert list(row["probs"].values()) == pytest.approx(prediction.probs[i].tolist(), rel=1e-4)
        assert row["ood_score"] == pytest.approx(prediction.ood_score[i].item(), rel=1e-4)
    assert "5 rows predicted, 0 bad lines" in result.stderr


def test_stdin_file_and_model_folder_are_the_same(cli, run_folder, tmp_path) -> None:
    file = write_rows(tmp_path / "in.jsonl", ROWS)
    texts = {
        cli("predict", run_folder, file).stdout,
        cli("predict", run_folder / "model", file).stdout,
        cli("predict", run_folder, input=file.read_bytes()).stdout,
        cli("predict", run_folder, "-", input=file.read_bytes()).stdout,
    }
    assert len(texts) == 1


BAD = [
    b"not json",
    b'{"txt": "a"}',
    b'{"text": 7}',
    b'{"text": "\xff"}',
    b"\x00\x01",
    b'{"text": "a", "id": 1.5}',
    b'["text"]',
]


def mixed() -> bytes:
    """Good lines 1, 3, 5, … with a bad one after each, and a blank line at the end."""
    good = [json.dumps(ROWS[i % len(ROWS)]).encode() for i in range(len(BAD))]
    return b"\n".join(line for pair in zip(good, BAD, strict=True) for line in pair) + b"\n\n"


def test_bad_lines_are_reported_and_stop_nothing(cli, run_folder, tmp_path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(mixed())
    result = cli("predict", run_folder, file)
    found = read_lines(result.stdout)
    assert [row["id"] for row in found] == ["a", 3, 7, 7, 9, "a", 13]
    for i in range(len(BAD)):
        assert f"{file} line {2 * i + 2}: " in result.stderr
    assert f"{len(BAD)} rows predicted, {len(BAD)} bad lines" in result.stderr
    alone = cli("predict", run_folder, write_rows(tmp_path / "one.jsonl", [ROWS[1]])).stdout
    assert found[1]["probs"] == pytest.approx(read_lines(alone)[0]["probs"], rel=1e-4)


def test_strict(cli, run_folder, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    result = cli("predict", run_folder, "--strict", input=mixed(), code=None)
    assert "stdin: 7 of 14 lines are bad; the other rows were written." in complaint(result)
    assert len(read_lines(result.stdout)) == 7
    result = cli("predict", run_folder, "-", "--strict", "--out", out, input=mixed(), code=None)
    assert "no file was written" in complaint(result)
    assert list(tmp_path.iterdir()) == []
    cli("predict", run_folder, "--strict", "--out", out, input=json.dumps(ROWS[0]))
    assert [row["id"] for row in read_lines(out.read_text())] == ["a"]


def test_out_is_what_stdout_would_be(cli, run_folder, tmp_path) -> None:
    file = write_rows(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "new" / "out.jsonl"
    result = cli("predict", run_folder, file, "--out", out)
    assert result.stdout == ""
    assert out.read_text() == cli("predict", run_folder, file).stdout
    cli("predict", run_folder, file, "--out", file)  # over its own input
    assert file.read_text() == out.read_text()


def test_nothing_usable(cli, run_folder, tmp_path) -> None:
    assert cli("predict", run_folder, input="").stdout == ""  # an empty stream is no mistake
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"")
    assert f"{file}: it is empty" in complaint(cli("predict", run_folder, file, code=None))
    file.write_bytes(bytes(range(256)))
    assert f"{file}: none of its" in complaint(cli("predict", run_folder, file, code=None))
    missing = cli("predict", run_folder, tmp_path / "im.jsonl", code=None)
    assert "Did you mean 'in.jsonl'?" in complaint(missing)
    assert "is a directory" in complaint(cli("predict", run_folder, tmp_path, code=None))


def test_csv(cli, run_folder, tmp_path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(
        b"id,text,label\n"
        b'a,"where is my parcel, please",x\n'
        b"b,refund,x,too many\n"
        b'c,"two\nlines",x\n'
        b"d,\xff,x\n"
        b'e,"bad"quote,x\n'
        b",login,\n"
    )
    result = cli("predict", run_folder, file)
    assert [row["id"] for row in read_lines(result.stdout)] == ["a", "c", 8]
    for line, said in ((3, "4 cells"), (6, "not UTF-8"), (7, "not valid CSV")):
        assert f"{file} line {line}: {said}" in result.stderr
    assert "3 rows predicted, 3 bad lines" in result.stderr


def test_parquet(cli, run_folder, tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"text": ["my parcel", None, "login"]}), file)
    result = cli("predict", run_folder, file)
    assert [row["id"] for row in read_lines(result.stdout)] == [1, 3]
    assert f"{file} row 2: 'text' is null" in result.stderr


def test_questions_from_csv(cli, llama_base, tmp_path) -> None:
    from toy_tasks import choice_rows

    rows = choice_rows(24)
    data, out = write_rows(tmp_path / "q.jsonl", rows), tmp_path / "run"
    cli(
        *("train", "--model", llama_base, "--data", data, "--out", out),
        *("epochs=1", "rank=2", "kl=1", "layers=top:1"),
    )
    cells = [[r["question"], json.dumps(r["choices"]).replace('"', '""')] for r in rows[:3]]
    file = tmp_path / "q.csv"
    file.write_text("question,choices\n" + "".join(f'{q},"{c}"\n' for q, c in cells) + "q,x\n")
    result = cli("predict", out, file)
    found = read_lines(result.stdout)
    lines = write_rows(tmp_path / "p.jsonl", [{**r, "id": i + 2} for i, r in enumerate(rows[:3])])
    assert found == read_lines(cli("predict", out, lines).stdout)  # the header is line 1
    for row, source in zip(found, rows[:3], strict=True):
        absent = list(row["probs"].values())[len(source["choices"]) :]
        assert absent == [0.0] * len(absent)
    assert f"{file} line 5: 'choices' must be a JSON list" in result.stderr


class Oracle:
    """A model whose passes can be watched and made to fail."""

    def __init__(self, fails: str = "") -> None:
        labels = LabelSet(("a", "b"), ("a", "b"))
        self.task = Task("classification", (), labels)
        self.fails = fails
        self.passes: list[int] = []

    def predict(self, task: Task, batch_size: int) -> Prediction:
        if any(self.fails and self.fails in (e.text or "") for e in task):
            raise DataError("Prompt 0 has no tokens.")
        self.passes.append(len(task))
        logits = torch.zeros(len(task), 2)
        return Prediction.of(Predictive.from_point(logits), task.labels.names)


def advance(count: int = 1, note: str = "") -> None:
    """Report to nobody."""


def source(rows) -> RowSource:
    return RowSource("stdin", "line", rows)


def test_rows_that_fail_late_do_not_stop_the_others(caplog) -> None:
    rows = [(i, {"text": "boom" if i in (2, 5) else "fine"}) for i in range(1, 8)]
    model, stream = Oracle("boom"), io.StringIO()
    job = Job(model, source(rows), 4)  # pyright: ignore
    with caplog.at_level("WARNING"):
        job.run(JsonLines(stream), 4, advance)
    assert [row["id"] for row in read_lines(stream.getvalue())] == [1, 3, 4, 6, 7]
    assert (job.good, job.bad) == (5, 2)
    assert caplog.messages == [f"stdin line {n}: Prompt 0 has no tokens." for n in (2, 5)]


def test_memory_is_bounded_and_rows_come_out_as_they_are_ready() -> None:
    read, written = 0, []

    def rows():
        nonlocal read
        for i in range(1, 101):
            read = i
            yield i, {"text": "fine"}

    class Stream(io.StringIO):
        def flush(self) -> None:
            written.append((read, self.getvalue().count("\n")))

    model = Oracle()
    Job(model, source(rows()), 8).run(JsonLines(Stream()), 8, advance)  # pyright: ignore
    assert model.passes == [8] * 12 + [4]
    assert written[:3] == [(8, 8), (16, 16), (24, 24)]


def test_labels_are_not_looked_at() -> None:
    model, stream = Oracle(), io.StringIO()
    model.task = replace(model.task, examples=())
    rows = [(1, {"text": "x", "label": {"no": "label"}})]
    Job(model, source(rows), 8).run(JsonLines(stream), 8, advance)  # pyright: ignore
    assert SimpleNamespace(**read_lines(stream.getvalue())[0]).label == "a"


def test_parquet_out_says_what_json_lines_say(cli, run_folder, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.parquet"
    cli("predict", run_folder, file, "--out", out)
    expected = read_lines(cli("predict", run_folder, file).stdout)
    table = parquet.read_table(out)
    assert table.to_pylist() == [{**row, "id": str(row["id"])} for row in expected]
    again = cli("predict", run_folder, out, "--out", tmp_path / "again.parquet", code=None)
    assert "none of its 5 lines can be predicted" in complaint(again)  # it has no texts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]
    assert parquet.read_table(_empty(cli, run_folder, tmp_path)).num_rows == 0


def _empty(cli, run_folder, tmp_path):
    out = tmp_path / "empty.parquet"
    cli("predict", run_folder, "--out", out, input="")
    return out


def test_parquet_holds_back_one_row_group_alone(tmp_path, monkeypatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(output, "_GROUP", 4000)
    rows = [(i, {"text": "fine"}) for i in range(1, 301)]
    with (tmp_path / "out.parquet").open("w") as stream:
        written = output.Parquet(stream)
        Job(Oracle(), source(rows), 8).run(written, 8, advance)  # pyright: ignore
        written.close()
    found = parquet.ParquetFile(tmp_path / "out.parquet")
    assert [row["id"] for row in found.read().to_pylist()] == [str(i) for i, _ in rows]
    assert found.metadata.num_row_groups > 3


def test_a_number_that_is_none_stops_parquet_too(tmp_path) -> None:
    pytest.importorskip("pyarrow")
    with (tmp_path / "out.parquet").open("w") as stream:
        rows = output.Parquet(stream)
        with pytest.raises(NumericsError, match="NaN or infinite"):
            rows.put([{"id": 1, "mean": math.nan}])
