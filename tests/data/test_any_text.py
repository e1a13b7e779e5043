"""Whatever text a file holds is read as it stands there, or refused; never another one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayestune.data import Task
from bayestune.errors import DataError

#: Everything but halves of surrogate pairs, which are no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ROWS = st.lists(st.tuples(TEXT, st.sampled_from(["a", "b"])), min_size=1, max_size=5)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(rows=ROWS, ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), bom=st.booleans())
def test_json_lines_hold_any_text(tmp_path: Path, rows, ascii_only, end, bom) -> None:
    rows = [("first", "a"), ("second", "b"), *rows]
    lines = [json.dumps({"text": t, "label": k}, ensure_ascii=ascii_only) for t, k in rows]
    data = (end.join(lines) + end).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + data if bom else data)
    task = Task.from_jsonl(tmp_path / "x.jsonl")
    assert [(e.text, task.labels[e.label]) for e in task] == rows


@MANY
@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]), bom=st.booleans())
def test_csv_holds_any_text_but_nul(tmp_path: Path, rows, end, bom) -> None:
    rows = [("first", "a"), ("second", "b"), *rows]
    with (tmp_path / "x.csv").open(
        "w", newline="", encoding="utf-8-sig" if bom else "utf-8"
    ) as out:
        writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    if any("\0" in text for text, _ in rows):
        with pytest.raises(DataError, match="NUL"):
            Task.from_csv(tmp_path / "x.csv")
        return
    task = Task.from_csv(tmp_path / "x.csv")
    assert [(e.text, task.labels[e.label]) for e in task] == rows


def test_a_megabyte_of_text_and_ids_that_stand_twice_are_read(tmp_path: Path) -> None:
    rows = [{"id": "same", "text": "é" * 2**19, "label": k} for k in "ab"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task.from_jsonl(tmp_path / "x.jsonl")
    assert [len(e.text or "") for e in task] == [2**19] * 2 and {e.id for e in task} == {"same"}
