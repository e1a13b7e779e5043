"""Files in an object store are read as those on a disk are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from store_stand_in import store

from bayestune.errors import ConfigError, DataError
from bayestune.scoring.places import expand, is_parquet, name_of, state
from bayestune.scoring.slices import slices

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def keys(monkeypatch) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"text": f"row {i} é" * (i % 3 + 1)} for i in range(50)]
    for name in ("a.jsonl", "b c.jsonl", "deep/er/d.jsonl", "x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=10)
    return tmp_path


def read(files: list[str], size: int) -> list[tuple[int, object]]:
    return [pair for some in slices(files, size) for pair in some.source().rows]


def test_a_store_gives_the_rows_that_a_disk_gives(folder, keys) -> None:
    with store(folder) as options:
        base = "s3://bucket"
        for pattern, names in (
            ("*.jsonl", ["a.jsonl", "b%20c.jsonl"]),
            ("**/*.jsonl", ["a.jsonl", "b%20c.jsonl", "deep/er/d.jsonl"]),
            ("deep/*/*.jsonl", ["deep/er/d.jsonl"]),
            ("p.parquet", ["p.parquet"]),
        ):
            found = expand([f"{base}/{pattern}{options}"])
            assert found == [f"{base}/{name}{options}" for name in names]
            local = expand([str(folder / name.replace("%20", " ")) for name in names])
            assert [is_parquet(file) for file in found] == [is_parquet(file) for file in local]
            assert [state(file)[0] for file in found] == [state(file)[0] for file in local]
            assert [name_of(file) for file in found] == [f"{base}/{name}" for name in names]
            assert read(found, 7) == read(local, 7)
            assert len(read(found, 7)) == 50 * len(names)


def test_what_a_store_has_not_and_what_is_no_store(folder, keys) -> None:
    with store(folder) as options:
        for name in ("none.jsonl", "*.csv", "none/*.jsonl"):
            with pytest.raises(DataError, match="no such file"):
                expand([f"s3://bucket/{name}{options}"])
    with pytest.raises(DataError, match="cannot be read"):
        expand([f"s3://bucket/a.jsonl{options}"])
    with pytest.raises(ConfigError, match="no URL that pyarrow knows"):
        expand(["https://example.org/a.jsonl"])
    with pytest.raises(ConfigError, match=r"s3://…@….*give keys as") as told:
        expand(["s3://key:secret@bucket/a.jsonl"])
    assert "secret@" not in str(told.value)
