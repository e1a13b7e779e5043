"""Where files to predict lie: on a disk that all workers see, or in a store that a URL names."""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bayestune.errors import ConfigError, DataError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_url(file: str) -> bool:
    """Return whether a name is a URL, such as ``s3://bucket/rows.jsonl``."""
    return _URL.match(file) is not None


def expand(patterns: Iterable[str]) -> list[str]:
    """Return the files that names and patterns stand for, those of a pattern sorted.

    Args:
        patterns: paths, which are made absolute, and URLs; with ``*`` and ``**``.

    Raises:
        ConfigError: if a URL is not one of a known store.
        DataError: if a pattern stands for none, a file is missing, or one is neither of JSON lines
            nor Parquet.
    """
    files: list[str] = []
    for pattern in patterns:
        for file in (_listed if is_url(pattern) else _globbed)(pattern):
            if _suffix(file) in (".csv", ".gz", ".zip"):
                raise DataError(
                    f"{file}: a slice of it cannot be read apart; write JSON lines or Parquet."
                )
            files.append(file)
    return files


def name_of(file: str) -> str:
    """Return a file's name without the options of its store."""
    return file.partition("?")[0] if is_url(file) else file


def is_parquet(file: str) -> bool:
    """Return whether a file is Parquet, by its name."""
    return _suffix(file) == ".parquet"


def folder_of(file: str) -> Path | None:
    """Return the folder of a file on a disk; None for a URL."""
    return None if is_url(file) else Path(file).parent


def state(file: str) -> list[Any]:
    """Return size and time of change of a file, which tell it from what it becomes."""
    if not is_url(file):
        found = Path(file).stat()
        return [found.st_size, found.st_mtime_ns]
    with _told(file):
        system, path = _system(file)
        info = system.get_file_info(path)
    return [info.size, info.mtime_ns]


@contextmanager
def opened(file: str) -> Iterator[Any]:
    """Yield a file to read bytes from anywhere in it, unbuffered.

    Raises:
        DataError: if it cannot be read.
    """
    with _told(file):
        if not is_url(file):
            with Path(file).open("rb", buffering=0) as stream:
                yield stream
            return
        system, path = _system(file)
        with system.open_input_file(path) as stream:
            yield stream


@contextmanager
def lines_of(file: str, start: int = 0) -> Iterator[io.BufferedReader]:
    """Yield the lines of a file from some byte on."""
    with opened(file) as raw, io.BufferedReader(raw, 1 << 20) as stream:
        stream.seek(start)
        yield stream


def _globbed(pattern: str) -> list[str]:
    pattern = os.path.abspath(pattern)  # noqa: PTH100 - workers may have other folders
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - of a whole path
    for file in found or [pattern]:
        if not Path(file).is_file():
            raise DataError(f"{file}: no such file; give files, or a pattern in quotes.")
    return found


def _listed(pattern: str) -> list[str]:
    """Return the URLs in a store that match one; what follows ``?`` are options of the store."""
    if (parts := urlsplit(pattern)).password is not None:
        raise ConfigError(
            f"{parts.scheme}://…@…: a URL with a key would be written beside the results; give "
            "keys as the store's environment variables."
        )
    with _told(pattern):
        if "*" not in pattern:
            system, path = _system(pattern)
            found = [pattern] if system.get_file_info(path).is_file else []
        else:
            found = sorted(_matching(*pattern.partition("?")))
    if not found:
        raise DataError(f"{pattern}: no such file; give files, or a pattern in quotes.")
    return found


def _matching(place: str, mark: str, options: str) -> Iterator[str]:
    base = place.partition("*")[0].rpartition("/")[0]
    system, root = _system(base + mark + options)
    from pyarrow.fs import FileSelector

    segments = place.removeprefix(base).split("**/")
    regexes = (re.escape(part).replace(r"\*", "[^/]*") for part in segments)
    wanted = re.compile("(?:.*/)?".join(regexes))
    for info in system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True)):
        name = quote(info.path.removeprefix(root))
        if info.is_file and wanted.fullmatch(name):
            yield base + name + mark + options


def _system(url: str) -> tuple[Any, str]:
    """Return the store of a URL and the path in it."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise ConfigError(f"{url} needs pyarrow: pip install 'bayestune[ray]'.") from error
    try:
        return FileSystem.from_uri(url)
    except (ArrowInvalid, NotImplementedError) as error:
        raise ConfigError(f"{url} is no URL that pyarrow knows: {error}.") from error


@contextmanager
def _told(file: str) -> Iterator[None]:
    """Say in one sentence what the system or a store has against a file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: cannot be read ({reason}).") from error


def _suffix(file: str) -> str:
    return Path(name_of(file)).suffix.lower()
