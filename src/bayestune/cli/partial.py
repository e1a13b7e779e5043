"""A file of results that grows beside its place, and goes on growing after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from bayestune.cli.console import log
from bayestune.errors import StoreError
from bayestune.files import read_json, sync, write_json


@dataclass(frozen=True)
class Reached:
    """How far a file has come.

    Attributes:
        read: rows of the source that were read, bad ones included.
        good: rows that were predicted.
        bad: lines that could not be.
        size: bytes that were written for them.
    """

    read: int = 0
    good: int = 0
    bad: int = 0
    size: int = 0


@contextmanager
def growing_file(
    path: Path, of: Mapping[str, Any]
) -> Iterator[tuple[TextIO, Reached, Callable[[int, int, int], None]]]:
    """Yield a stream at the end of what an earlier process had written, how far that was, and a
    function that keeps what has been written since.

    The stream's file takes the place of ``path`` when the block ends without error; until then it
    is ``path.partial``, with how far it has come in ``path.partial.json``.

    Args:
        path: the finished file.
        of: all that determines its content, JSON-ready.

    Raises:
        StoreError: if it cannot be written, or what is there is of something else.
    """
    part = path.with_name(path.name + ".partial")
    notes = part.with_name(part.name + ".json")
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    reached = _reached(part, notes, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("r+" if reached.size else "w", encoding="utf-8") as stream:
            stream.seek(reached.size)
            stream.truncate()  # what followed the last note may be half a row

            def keep(read: int, good: int, bad: int) -> None:
                stream.flush()
                os.fsync(stream.fileno())
                size = os.fstat(stream.fileno()).st_size
                write_json(notes, {"of": key, **asdict(Reached(read, good, bad, size))})

            yield stream, reached, keep
        sync(part)
        part.replace(path)
        sync(path.parent)
        notes.unlink(missing_ok=True)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{part} could not be written: {error.strerror or error}.") from error


def _reached(part: Path, notes: Path, key: str) -> Reached:
    """Return how far an earlier process came; nowhere without its file and its note."""
    if not part.is_file() or not notes.is_file():
        return Reached()
    found = read_json(notes)
    try:
        if found.pop("of") != key:
            raise StoreError(
                f"{part} was written with another model, file or options; give the same command, "
                "or remove it to start anew."
            )
        reached = Reached(**found)
    except (AttributeError, KeyError, TypeError):
        raise StoreError(f"{notes} is damaged; remove it to start anew.") from None
    if part.stat().st_size < reached.size:
        raise StoreError(f"{part} is shorter than was noted; remove it to start anew.")
    log.info("going on after %d rows of %s", reached.read, part)
    return reached
