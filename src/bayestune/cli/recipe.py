"""The layers of a recipe: method defaults < file < flags < key=value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayestune.config import Recipe


def layers(
    config: str | None,
    flags: Mapping[str, Any],
    overrides: Iterable[str],
    start: Path | None = None,
) -> dict[str, Any]:
    """Merge what the user gave and check its names and types, before anything heavy is imported.

    Args:
        config: a recipe's path or shipped name.
        flags: recipe keys by flag; None where the flag was not given.
        overrides: ``key=value`` pairs.
        start: a trained run whose recipe lies below all of these.

    Returns:
        Nested plain values to be laid over a method's defaults.

    Raises:
        ConfigError: naming the file and the key.
    """
    from bayestune import recipes
    from bayestune.config import from_mapping, merge, parse_overrides, read_yaml

    file: dict[str, Any] = {}
    if config is not None:
        path = recipes.find(config)
        file = read_yaml(path)
        from_mapping(file, where=str(path))  # by itself, so that a mistake in it is named as its
    given = {key: value for key, value in flags.items() if value is not None}
    trained: dict[str, Any] = {}
    if start is not None:
        from bayestune.store import recipe_of

        trained = recipe_of(start)
    merged = merge(trained, file, given, parse_overrides(overrides))
    from_mapping(merged)
    return merged


def resolved(merged: Mapping[str, Any]) -> Recipe:
    """Lay merged values over the defaults of their method.

    Raises:
        ConfigError: for an unknown method, or values that do not go together.
    """
    from bayestune import methods
    from bayestune.config import from_mapping

    return methods.recipe(from_mapping(merged).method, merged)
