"""The layers of a recipe: method defaults < file < flags < key=value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bayestune.errors import ConfigError

if TYPE_CHECKING:
    from bayestune.config import Recipe


def layers(
    config: str | None, flags: Mapping[str, Any], overrides: Iterable[str]
) -> dict[str, Any]:
    """Merge what the user gave and check its names and types, before anything heavy is imported.

    Args:
        config: a recipe's path or shipped name.
        flags: recipe keys by flag; None where the flag was not given.
        overrides: ``key=value`` pairs.

    Returns:
        Nested plain values to be laid over a method's defaults.

    Raises:
        ConfigError: naming the file and the key.
    """
    from bayestune import recipes
    from bayestune.config import from_mapping, merge, parse_overrides, read_yaml

    path = recipes.find(config) if config is not None else None
    file = read_yaml(path) if path is not None else {}
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        merged = merge(file, given, parse_overrides(overrides))
        from_mapping(merged)
    except ConfigError:
        # Where the file alone is at fault, the message names it.
        from_mapping(file, where=str(path))
        raise
    return merged


def resolved(merged: Mapping[str, Any]) -> Recipe:
    """Lay merged values over the defaults of their method.

    Raises:
        ConfigError: for an unknown method, or values that do not go together.
    """
    from bayestune import methods
    from bayestune.config import from_mapping

    return methods.recipe(from_mapping(merged).method, merged)
