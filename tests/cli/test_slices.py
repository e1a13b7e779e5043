"""Slices of files: every row in one of them, with its own number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_checks import complaint

from bayestune.errors import DataError
from bayestune.scoring.places import expand
from bayestune.scoring.slices import slices


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {i} é" * (i % 3 + 1)} for i in range(count)]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_lines_are_cut_without_loss(tmp_path, size, end) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(50)]
    lines[3], lines[20] = "", "broken"
    file = tmp_path / "a.jsonl"
    file.write_text("\ufeff" + "\n".join(lines) + end, encoding="utf-8")
    found = list(slices([str(file)], size))
    read = [pair for some in found for pair in some.source().rows]
    assert [number for number, _ in read] == [n for n in range(1, 51) if n != 4]
    assert isinstance(read[19][1], DataError) and f"{file} line 21: " in str(read[19][1])
    assert [row["text"] for _, row in read if isinstance(row, dict)] == [
        row["text"] for i, row in enumerate(rows(50)) if i not in (3, 20)
    ]
    assert [some.number for some in found] == list(range(-(-50 // size)))


@pytest.mark.parametrize(("size", "parts"), [(1, 5), (10, 5), (11, 3), (1000, 1)])
def test_row_groups_stay_whole(tmp_path, size, parts) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows(50)), file, row_group_size=10)
    found = list(slices([str(file)], size))
    assert len(found) == parts
    assert [pair for some in found for pair in some.source().rows] == list(
        enumerate(rows(50), start=1)
    )


def test_files_follow_each_other(tmp_path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n' * 3)
    files = expand([str(tmp_path / "*.jsonl")])
    assert [Path(file).name for file in files] == ["a.jsonl", "b.jsonl"]
    names = [(some.name, some.first, some.rows) for some in slices(files, 2)]
    assert names == [
        ("part-000000", 1, 2),
        ("part-000001", 3, 1),
        ("part-000002", 1, 2),
        ("part-000003", 3, 1),
    ]


def test_files_that_cannot_be_cut(tmp_path) -> None:
    with pytest.raises(DataError, match=r"\*\.jsonl: no such file"):
        expand([str(tmp_path / "*.jsonl")])
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match="a slice of it cannot be read apart"):
        expand([str(tmp_path / "a.csv")])


def test_what_an_engine_needs(cli, run_folder, files, tmp_path) -> None:
    file = files["test"]
    out = ("--out", tmp_path / "parts")
    for said, options in (
        ("There is no engine 'spark'", (file, *out, "--engine", "spark")),
        ("takes files, and --out", (file, "--engine", "ray")),
        ("takes files, and --out", (*out, "--engine", "ray")),
        ("expected jsonl or parquet", (file, *out, "--engine", "ray", "--parts", "csv")),
        ("2 files are predicted together by --engine ray", (file, file)),
    ):
        assert said in complaint(cli("predict", run_folder, *options, code=None))
