"""Methods by name. Adding one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayestune.config import Recipe, from_mapping, merge
from bayestune.errors import ConfigError, nearest
from bayestune.methods import mle, polar_vbll
from bayestune.methods.contract import Method, Parts, Terms

METHODS: dict[str, Method] = {m.METHOD.name: m.METHOD for m in (polar_vbll, mle)}


def get(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ConfigError: if there is none, with the nearest one.
    """
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}.{nearest(name, METHODS)}")
    return METHODS[name]


def recipe(method: str, *layers: Mapping[str, Any]) -> Recipe:
    """Return a method's defaults with nested values laid over them, later ones winning.

    Raises:
        ConfigError: for an unknown method, key or a value of a wrong type.
    """
    return from_mapping(merge(get(method).defaults, *layers, {"method": method}))


__all__ = ["METHODS", "Method", "Parts", "Terms", "get", "recipe"]
