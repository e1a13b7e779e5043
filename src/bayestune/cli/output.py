"""A file that appears only when it is complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bayestune.errors import StoreError


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """Yield a stream whose content takes the place of ``path`` when the block ends without error.

    Raises:
        StoreError: if the disk is full or the place cannot be written; ``path`` stays as it was.
    """
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise StoreError(f"{path} is a directory; name a file.")
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        staging = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        staging.chmod(0o644)  # temporary files are private, results are not
        staging.replace(path)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        if staging is not None:
            staging.unlink(missing_ok=True)
