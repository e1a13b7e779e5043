"""Cutting files into slices that can be predicted apart, and reading one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bayestune.data.rows import RowSource, read_lines_tolerant
from bayestune.errors import DataError
from bayestune.scoring.places import folder_of, is_parquet, lines_of, opened


@dataclass(frozen=True)
class Slice:
    """Some consecutive rows of one file.

    Attributes:
        number: its place among all slices, from 0.
        file: where they are.
        first: the number of its first line or row in the file, from 1.
        rows: how many lines or rows.
        start: bytes before it; of Parquet the index of its first row group.
        groups: row groups of Parquet; 0 for JSON lines.
    """

    number: int
    file: str
    first: int
    rows: int
    start: int
    groups: int = 0

    @property
    def name(self) -> str:
        """What its files are called, which sorts as the rows do."""
        return f"part-{self.number:06d}"

    def source(self) -> RowSource:
        """Return its rows; bad lines of JSON come as their errors."""
        rows: Iterator[tuple[int, Any]] = self._parquet() if self.groups else self._lines()
        unit = "row" if self.groups else "line"
        return RowSource(self.file, unit, rows, folder=folder_of(self.file))

    def _lines(self) -> Iterator[tuple[int, Any]]:
        with lines_of(self.file, self.start) as stream:
            lines: Any = islice(stream, self.rows)
            yield from read_lines_tolerant(lines, self.file, self.first)

    def _parquet(self) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet as pq

        groups = list(range(self.start, self.start + self.groups))
        with opened(self.file) as raw, pq.ParquetFile(raw, buffer_size=1 << 20) as file:
            batches = file.iter_batches(batch_size=1024, row_groups=groups)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from enumerate(rows, start=self.first)


def slices(files: Iterable[str], rows: int) -> Iterator[Slice]:
    """Cut files into slices of about so many rows; a row group of Parquet stays whole.

    Lines are counted, so that every slice knows the numbers of its own.
    """
    number = 0
    for file in files:
        cut = _groups if is_parquet(file) else _spans
        for first, count, start, groups in cut(file, rows):
            yield Slice(number, file, first, count, start, groups)
            number += 1


def _spans(file: str, rows: int) -> Iterator[tuple[int, int, int, int]]:
    first, start = 1, 0
    with lines_of(file) as stream:
        while lines := [len(line) for line in islice(stream, rows)]:
            yield first, len(lines), start, 0
            first, start = first + len(lines), start + sum(lines)


def _groups(file: str, rows: int) -> Iterator[tuple[int, int, int, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(file) as raw:
            meta = pq.read_metadata(raw)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}).") from error
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    first, held, start = 1, 0, 0
    for i, size in enumerate(sizes):
        held += size
        if held >= rows or i + 1 == len(sizes):
            yield first, held, start, i + 1 - start
            first, held, start = first + held, 0, i + 1
