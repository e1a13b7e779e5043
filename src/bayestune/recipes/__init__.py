"""Annotated recipes that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from bayestune.errors import ConfigError, nearest

__all__ = ["find", "names", "shipped", "title"]


def names() -> list[str]:
    """Return the names of the shipped recipes, in order."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().glob("*.yaml"))


def shipped(name: str) -> Path:
    """Return where a shipped recipe lies on disk.

    Raises:
        ConfigError: if there is none of that name, with the nearest one.
    """
    name = name.removesuffix(".yaml")
    if name not in names():
        raise ConfigError(f"There is no recipe {name!r}.{nearest(name, names())}")
    return _folder() / f"{name}.yaml"


def find(source: str) -> Path:
    """Return the file of a recipe: a path where one lies, else the name of a shipped recipe.

    Raises:
        ConfigError: if it is neither.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.parent != Path() and source not in names():
        raise ConfigError(
            f"The recipe {source} does not exist; `bayestune config ls` names the shipped ones."
        )
    return shipped(source)


def title(path: Path) -> str:
    """Return what a recipe says of itself: its first line of comment."""
    with path.open(encoding="utf-8") as stream:
        return next((line.lstrip("# ").rstrip() for line in stream if line.startswith("#")), "")


def _folder() -> Path:
    return Path(str(files(__name__)))
