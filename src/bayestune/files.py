"""Writing files and folders so that a reader sees the old or the new one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from bayestune.errors import StoreError

T = TypeVar("T")

#: What a killed process leaves of ``name``: something new that is not complete, the old one that
#: was to be replaced, something that was to go. Eight signs, as mkdtemp adds: a.b is not a.
_LEFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(?P<kind>new|old|gone)")


@contextmanager
def _writing(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Make the folder around ``path``; what the system then refuses becomes a StoreError."""
    try:
        made = [folder for folder in path.absolute().parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            sync(folder.parent)
        yield
    except StoreError:
        raise
    except (OSError, *others) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{path} could not be written: {reason}.") from error


def sync(path: Path) -> None:
    """Return when a file's content, or the names in a folder, would survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # So file systems say that they know no such thing for folders.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """Yield a stream whose content takes the place of ``path`` when the block ends without error.

    A link stays one and its target is replaced. What is no file (a pipe, a terminal) cannot be
    replaced by one; it is written to as it comes.

    Raises:
        StoreError: if the disk is full or the place cannot be written; ``path`` stays as it was.
    """
    with _writing(path):
        if path.is_dir():
            raise StoreError(f"{path} is a directory; name a file.")
        if _is_stream(path):
            with path.open("w", encoding="utf-8") as stream:
                yield stream
            return
        try:
            path = path.resolve()
        except RuntimeError as error:  # until Python 3.13, where it is an OSError
            raise StoreError(f"{path} could not be written: it is a link to itself.") from error
        handle, name = tempfile.mkstemp(".new", f".{path.name}.", path.parent)
        staging = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            staging.chmod(0o644)  # temporary files are private, results are not
            staging.replace(path)
            sync(path.parent)
        finally:
            staging.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """Return whether a path is a pipe or a device, or stands for an open file (/dev/stdout)."""
    return path.exists() and (not path.is_file() or path.parts[:2] in (("/", "dev"), ("/", "proc")))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; see `new_file`."""
    with new_file(path) as stream:
        stream.write(text)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; see `write_text`."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
        raise StoreError(f"{path} is damaged: {error}.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` when the block ends without error.

    Raises:
        StoreError: if the disk is full or the place cannot be written; ``path`` stays as it was.
    """
    # Here and not above: the command line writes files without loading the library.
    from safetensors import SafetensorError

    with _writing(path, SafetensorError):
        recover(path)
        staging = Path(tempfile.mkdtemp(".new", f".{path.name}.", path.parent))
        try:
            yield staging
            staging.chmod(0o755)
            for part in (*staging.rglob("*"), staging):
                sync(part)
            _swap(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def recover(path: Path) -> None:
    """Tidy up what a process left of a folder that was killed while it replaced or removed it.

    The folder that was to be replaced takes its place again where it is missing, and goes where the
    new one is there.
    """
    _tidy(path.parent, path.name)


def tidy(folder: Path) -> None:
    """Do what `recover` does for all that lies in a folder, which nobody else may be writing."""
    _tidy(folder)


def _tidy(folder: Path, only: str | None = None) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        left = _LEFT.fullmatch(path.name)
        if left is None or only not in (None, left["name"]):
            continue
        if left["kind"] == "old" and not (folder / left["name"]).exists():
            path.replace(folder / left["name"])
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a folder so that a process killed meanwhile leaves it whole or not at all."""
    if not path.exists():
        return
    with _writing(path):
        gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}.gone")
        path.replace(gone)
        sync(path.parent)
    shutil.rmtree(gone, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    old = staging.with_suffix(".old")
    had = path.exists()
    if had:
        path.replace(old)
    try:
        staging.replace(path)
    except BaseException:
        if had:
            old.replace(path)
        raise
    sync(path.parent)  # before the old one goes
    shutil.rmtree(old, ignore_errors=True)


def under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """Return what stands under a prefix, by the rest of its name."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def require_inside(folder: Path) -> None:
    """Refuse a folder that is not all of what it holds: links outside, pipes, devices.

    Whoever made the folder chooses where a link leads, and what we read or replace with it. The
    links of the Hub's own cache, from a snapshot to its blobs, are its files.

    Raises:
        StoreError: naming the first such entry.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for path in sorted(folder.rglob("*")):
        try:
            real = path.resolve(strict=path.is_symlink())
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{path} is a link to nothing: copy the folder again.") from error
        if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
            raise StoreError(
                f"{path} is a link that leads outside its folder, which is neither read nor "
                "written to: put the file itself there (cp -L)."
            )
        if not (real.is_file() or real.is_dir()):
            raise StoreError(f"{path} is neither a file nor a folder.")


def verify(folder: Path, checksums: Mapping[str, str]) -> None:
    """Compare the files of a folder with their recorded checksums.

    Raises:
        StoreError: naming the file that is missing or differs.
    """
    for name, expected in checksums.items():
        path = folder / name
        if Path(name).name != name or "\0" in name:
            raise StoreError(f"{folder} names a file outside itself: {name!r}.")
        if not path.is_file():
            raise StoreError(f"{path} is missing; the model is incomplete.")
        if checksum(path) != expected:
            raise StoreError(
                f"{path} is damaged or was changed: its checksum is not the recorded one. Copy it "
                "again from where it was trained."
            )
