"""The quick-start data: a synthetic help-desk triage set that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from bayestune.errors import DataError, nearest
from bayestune.files import new_file

__all__ = ["QUICKSTART_FILES", "copy_quickstart", "quickstart_path"]

QUICKSTART_FILES = ("train.jsonl", "test.jsonl", "oos.jsonl", "labels.json", "README.md")


def quickstart_path(name: str) -> Path:
    """Return where one quick-start file lies on disk.

    Args:
        name: one of ``QUICKSTART_FILES``, such as ``"train.jsonl"``.

    Returns:
        The path of the installed file.

    Raises:
        DataError: the name is not a quick-start file, or the installation lacks the file.
    """
    if name not in QUICKSTART_FILES:
        raise DataError(
            f"There is no quick-start file {name!r}; expected a file name."
            f"{nearest(name, QUICKSTART_FILES)}"
        )
    # A file inside a zip archive has no path of its own, so the check below also covers zipimport.
    path = Path(str(files(__name__) / name))
    if not path.is_file():
        raise DataError(
            f"The quick-start file {name!r} is not at {path}; expected it beside the installed "
            "package. Install bayestune again, unpacked."
        )
    return path


def copy_quickstart(folder: str | Path) -> list[Path]:
    """Copy the quick-start files into a folder, made where there is none; return where they lie.

    Raises:
        DataError: if the folder has a file of one of their names; nothing is copied then.
    """
    targets = [Path(folder) / name for name in QUICKSTART_FILES]
    for target in targets:
        if target.exists():
            raise DataError(f"{target} exists already; give another folder or remove it first.")
    for target in targets:
        with new_file(target) as stream:
            stream.write(quickstart_path(target.name).read_text(encoding="utf-8"))
    return targets
