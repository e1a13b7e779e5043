"""Rows of predictions on their way into a file: lines of JSON, or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from bayestune.errors import DataError, NumericsError

#: Bytes of predictions that are gathered for a row group of Parquet.
_GROUP = 1 << 25


class Output(Protocol):
    """Takes rows as they are ready."""

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take some more rows, all with the same keys."""
        ...

    def close(self) -> None:
        """Write what is still held back; the stream is left open."""
        ...


def output(stream: TextIO, path: Path | None) -> Output:
    """Return what writes rows to a stream in the format that a path's suffix says."""
    if path is not None and path.suffix.lower() == ".parquet":
        return Parquet(stream)
    return JsonLines(stream)


class JsonLines:
    """One JSON object per line.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows at once."""
        self.stream.writelines(to_json(row) + "\n" for row in rows)
        self.stream.flush()

    def close(self) -> None:
        """Do nothing, as nothing is held back."""


class Parquet:
    """A column for each key, ids as text, probabilities as a struct with a field for each class.

    Args:
        stream: where to; the text stream of a file, whose bytes are written.

    Raises:
        DataError: if pyarrow is not installed.
    """

    def __init__(self, stream: TextIO) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(
                "Writing Parquet needs pyarrow; pip install 'bayestune[data]', or name the file "
                ".jsonl."
            ) from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._stream = stream.buffer
        self._schema: Any = None
        self._writer: Any = None
        self._held: list[Any] = []

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hold rows until they make a row group."""
        if not rows:
            return
        for row in rows:
            to_json(row)  # says so of a number that is none, as the other format does
        if self._schema is None:
            self._schema = self._arrow.schema([(k, self._type(k, v)) for k, v in rows[0].items()])
        plain = [{**row, "id": str(row["id"])} for row in rows]
        self._held.append(self._arrow.RecordBatch.from_pylist(plain, schema=self._schema))
        if sum(batch.nbytes for batch in self._held) >= _GROUP:
            self._write()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._schema is None:
            self._schema = self._arrow.schema([("id", self._arrow.string())])
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._stream, self._schema)
        table = self._arrow.Table.from_batches(self._held, schema=self._schema)
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
        self._held = []

    def _type(self, key: str, value: Any) -> Any:
        arrow = self._arrow
        if key == "id" or isinstance(value, str):
            return arrow.string()
        if isinstance(value, bool):
            return arrow.bool_()
        if isinstance(value, list):
            return arrow.list_(arrow.string())
        if isinstance(value, Mapping):
            return arrow.struct([(str(name), arrow.float64()) for name in value])
        return arrow.float64()


def to_json(row: Mapping[str, Any]) -> str:
    """Return one line of JSON whose numbers are all numbers.

    Raises:
        NumericsError: if one is NaN or infinite.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NumericsError(
            "A result is NaN or infinite, which JSON cannot hold; evaluate more rows, or with "
            "dtype=float32."
        ) from error
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row)  # half a surrogate pair can only be written escaped
    return text
