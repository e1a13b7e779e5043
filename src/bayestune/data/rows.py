"""Rows of a data file, one at a time, each with the number by which an error can name it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bayestune.data.hub import hub_rows
from bayestune.errors import ConfigError, DataError, nearest

Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row]]

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class RowSource:
    """Rows with what is known about where they came from.

    Args:
        name: the source as the user wrote it.
        unit: what the numbers count, ``"line"`` or ``"row"``.
        rows: pairs of a 1-based number and a row; to be read once.
        untyped: whether every cell is text, as in CSV.
        class_names: names of the classes by column, where the source itself has them.
        folder: where a ``labels.json`` may lie.
    """

    name: str
    unit: str
    rows: Iterable[tuple[int, Row]]
    untyped: bool = False
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None

    def where(self, number: int) -> str:
        """Return ``"train.jsonl line 17"``."""
        return f"{self.name} {self.unit} {number}".strip()


def read_rows(source: str | Path, limit: int | None = None) -> Numbered:
    """Yield pairs of a 1-based line (or row) number and a row.

    Args:
        source: a ``.jsonl``, ``.csv`` (with a header) or ``.parquet`` file, or
            ``hf:ORG/NAME[/CONFIG][:SPLIT]``.
        limit: read at most this many rows; what follows is not looked at.

    Raises:
        DataError: naming the source and the line that cannot be read.
    """
    yield from _limited(open_rows(source).rows, limit)


def open_rows(source: str | Path, suffix: str | None = None, limit: int | None = None) -> RowSource:
    """Open a source by its suffix, or by the suffix given.

    Raises:
        DataError: if the file is missing, a directory or of an unknown kind.
    """
    if suffix is None and str(source).startswith("hf:"):
        rows, class_names = hub_rows(str(source))
        return RowSource(str(source), "row", _limited(rows, limit), class_names=class_names)
    path = Path(source)
    kind = (suffix or path.suffix).lower()
    _check_file(path)
    if kind not in _READERS:
        hint = " Write one JSON object per line and call it .jsonl." if kind == ".json" else ""
        raise DataError(
            f"{source}: cannot tell the format from the suffix {kind!r}.{hint}"
            f"{nearest(kind, _READERS)}"
        )
    return RowSource(
        name=str(source),
        unit="row" if kind == ".parquet" else "line",
        rows=_limited(_not_empty(_READERS[kind](path), str(source)), limit),
        untyped=kind == ".csv",
        folder=path.parent,
    )


def read_lines_tolerant(
    stream: IO[bytes] | IO[str], name: str = "stdin", first: int = 1
) -> Iterator[tuple[int, Row | DataError]]:
    """Yield a row or the error of each line of JSON, so that a bad line does not stop the others.

    Args:
        stream: a binary or text stream; lines are read as they come and blank ones are skipped.
        name: what the errors call the stream.
        first: the number of its first line.
    """
    # A text stream would end at the first byte that is not UTF-8; its buffer does not.
    for number, line in enumerate(getattr(stream, "buffer", stream), start=first):
        try:
            row = parse_line(line, f"{name} line {number}", first=number == 1)
        except DataError as error:
            yield number, error
            continue
        if row is not None:
            yield number, row


def open_tolerant(source: str | Path) -> RowSource:
    """Open a source whose bad records are yielded as errors instead of ending it.

    Args:
        source: a ``.csv`` or ``.parquet`` file, ``hf:NAME[/CONFIG][:SPLIT]``, or any other file or
            pipe of JSON lines, whatever it is called.

    Returns:
        A source whose rows are pairs of a number and a row or its `DataError`.

    Raises:
        DataError: if the file is missing or a directory.
    """
    path = Path(source)
    kind = path.suffix.lower()
    if str(source).startswith("hf:") or kind == ".parquet":
        return open_rows(source)
    _check_file(path)
    rows = _csv_tolerant(path) if kind == ".csv" else _jsonl_tolerant(path)
    return RowSource(str(source), "line", rows, untyped=kind == ".csv", folder=path.parent)  # pyright: ignore[reportArgumentType]


def _jsonl_tolerant(path: Path) -> Iterator[tuple[int, Row | DataError]]:
    try:
        with path.open("rb") as stream:
            yield from read_lines_tolerant(stream, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def parse_line(line: bytes | str, where: str, first: bool = False) -> Row | None:
    """Return the JSON object on a line, or None where the line is blank.

    Raises:
        DataError: if the line is not UTF-8, not JSON, not an object, or names a key twice.
    """
    text = _decode(line, where, first).strip()
    if not text:
        return None
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if text in ("[", "{"):
            raise DataError(f"{where}: only {text!r}; write one JSON object per line.") from error
        if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
            raise DataError(f"{where}: the JSON breaks off; is the file truncated?") from error
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.pos + 1})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not usable JSON ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {_json_kind(row)}.")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return row


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    names = {list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def _decode(line: bytes | str, where: str, first: bool) -> str:
    text = line if isinstance(line, str) else _utf8(line, where, first)
    return text.removeprefix("\ufeff") if first else text


def _utf8(line: bytes, where: str, first: bool) -> str:
    if first and line.startswith(_UTF16):
        raise DataError(f"{where}: the file is UTF-16; save it as UTF-8.")
    if b"\0" in line:
        raise DataError(f"{where}: contains NUL bytes; is it a binary file?")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{byte:02x} at position {error.start + 1}); "
            "save the file as UTF-8."
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            yield from enumerate(stream, start=1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _jsonl_rows(path: Path) -> Numbered:
    for number, line in _lines(path):
        row = parse_line(line, f"{path} line {number}", first=number == 1)
        if row is not None:
            yield number, row


def _csv_rows(path: Path) -> Numbered:
    for number, row in _csv_tolerant(path):
        if isinstance(row, DataError):
            raise row
        yield number, row


def _csv_tolerant(path: Path) -> Iterator[tuple[int, Row | DataError]]:
    """Yield a row or the error of each record; only a bad header ends it."""
    bad: dict[int, DataError] = {}

    def decoded() -> Iterator[str]:
        for n, line in _lines(path):
            try:
                yield _decode(line, f"{path} line {n}", n == 1)
            except DataError as error:
                bad[n] = error
                yield "\n"

    reader = csv.reader(decoded(), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        problem: DataError | None = None
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = DataError(f"{path} line {number}: not valid CSV ({error}).")
        # A record may span lines; the first that is not text is what is wrong with it.
        spanned = range(number, reader.line_num + 1)
        problem = next((bad[n] for n in spanned if n in bad), problem)
        if problem is not None:
            if header is None:
                raise problem
            yield number, problem
        elif not cells or (len(cells) == 1 and not cells[0].strip() and len(header or "ab") > 1):
            continue
        elif header is None:
            header = _checked_header(cells, f"{path} line {number}")
        elif len(cells) != len(header):
            yield (
                number,
                DataError(
                    f"{path} line {number}: {len(cells)} cells, but the header names "
                    f"{len(header)}; put cells that hold commas in double quotes."
                ),
            )
        else:
            yield number, dict(zip(header, cells, strict=True))


def _checked_header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if "" in header:
        raise DataError(f"{where}: column {header.index('') + 1} of the header has no name.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{where}: the header names {twice[0]!r} twice.")
    return header


def _parquet_rows(path: Path) -> Numbered:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; pip install 'bayestune[data]'."
        ) from error
    try:
        # With a buffer a row group is read piece by piece, however large it is.
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise DataError(f"{path}: two columns are called {twice[0]!r}.")
            batches = file.iter_batches(batch_size=1024)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable Parquet file ({reason}).") from error


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _jsonl_rows,
    ".json-lines": _jsonl_rows,
    ".jsonlines": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a data file in it.")
    if not path.exists():
        beside = [p.name for p in path.parent.glob("*") if p.suffix in _READERS]
        raise DataError(f"{path}: no such file.{nearest(path.name, sorted(beside))}")


def _not_empty(rows: Numbered, name: str) -> Numbered:
    empty = True
    for numbered in rows:
        empty = False
        yield numbered
    if empty:
        raise DataError(f"{name}: has no rows.")


def _limited(rows: Iterable[tuple[int, Row]], limit: int | None) -> Numbered:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1 (or None for all rows).")
    return islice(rows, limit)
