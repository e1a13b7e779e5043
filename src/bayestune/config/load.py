"""From YAML and ``key=value`` overrides to a checked recipe, and back."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bayestune.config.recipe import Recipe
from bayestune.errors import ConfigError, nearest

#: More than any recipe or suite has, aliases counted wherever they stand.
_MOST_VALUES, _DEEPEST = 100_000, 200

#: Names that people type without thinking, where they are not the last part of one key anyway.
ALIASES = {"r": "adapter.rank", "base": "model"}


def full_key(short: str) -> str:
    """Return the dotted key that a short name stands for: an alias or a key's own last part.

    Raises:
        ConfigError: if it stands for none, or for several.
    """
    valid = keys()
    key = ALIASES.get(short, short)
    if key in valid or _of_method(key):
        return key
    meant = [k for k in valid if k.rsplit(".", 1)[-1] == short]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigError(f"the key {short} stands for {' and '.join(meant)}: write one of them.")
    raise ConfigError(
        f"unknown key {short}.{nearest(short, [*valid, *(k.rsplit('.', 1)[-1] for k in valid)])}"
    )


def keys(cls: type = Recipe, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Return every dotted key of the recipe with its field."""
    found: dict[str, dataclasses.Field[Any]] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            found |= keys(hints[f.name], f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = f
    return found


def from_mapping(
    data: Mapping[str, Any], cls: type = Recipe, prefix: str = "", where: str = ""
) -> Any:
    """Build a recipe (or a section of one) from nested plain values, checking names and types.

    Args:
        data: nested mapping, as read from YAML.
        cls: the dataclass to build.
        prefix: dotted path of ``cls`` within the recipe, for messages.
        where: the file the values came from, for messages.

    Returns:
        An instance of ``cls``.

    Raises:
        ConfigError: for an unknown key (with the nearest valid one) or a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    at = f"{where}: " if where else ""
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in hints:
            raise ConfigError(f"{at}unknown key {prefix}{key!s}.{nearest(key, hints)}")
        hint = hints[key]
        if hint == dict[str, Any]:
            values[key] = _options_of_method(value, prefix + key, at)
        elif dataclasses.is_dataclass(hint):
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"{at}{prefix}{key} is {value!r}; expected a section of keys.")
            values[key] = from_mapping(value, typing.cast(type, hint), f"{prefix}{key}.", where)
        else:
            values[key] = _coerce(value, hint, prefix + str(key), at)
    try:
        return cls(**values)
    except ConfigError as error:
        section = "" if str(error).startswith(prefix) else f"{prefix.rstrip('.')}: "
        raise ConfigError(f"{at}{section}{error}") from None


def _options_of_method(value: Any, key: str, at: str) -> dict[str, Any]:
    """Return a section whose keys are a method's own; `bayestune.methods.recipe` checks them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{at}{key} is {value!r}; expected a section of keys.")
    return dict(value)


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested plain values, in the order of its fields."""
    return dataclasses.asdict(recipe)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML recipe as nested plain values.

    Raises:
        ConfigError: where the file is missing, is not UTF-8 YAML or is not a mapping.
    """
    path = Path(path)
    try:
        data = _plain(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; `bayestune config ls` names the shipped recipes."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply for a recipe.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-02-31
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line} is not valid YAML: {problem}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}; expected keys and values.")
    return data


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turn ``["train.lr=1e-3", ...]`` into nested plain values.

    Values are read as YAML. Where a key takes text, what is written is the text, unless it is
    quoted, a list or null: templates hold braces, colons and ``#``, revisions look like numbers.

    Raises:
        ConfigError: for a pair without ``=``, or an unknown key.
    """
    flat: dict[str, Any] = {}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not sep or not key.strip():
            raise ConfigError(
                f"override {pair!r} is not of the form key=value, as in train.lr=1e-3."
            )
        full, text = full_key(key.strip()), text.strip()
        try:
            value = _plain(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            value = text
        meant = text[:1] in "\"'" or _is_list(value) or (value is None and text[0] != "#")
        flat[full] = value if meant or str not in _options(_hint(full)) else text
    return nest(flat)


def _plain(text: str) -> Any:
    """Read YAML whose aliases do not multiply: 300 bytes can stand for 9⁹ values, or for no end."""
    depth = 0
    for bracket in re.findall(r"[][{}]", text):  # PyYAML's time is quadratic in them
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise RecursionError
    data = yaml.safe_load(text)
    waiting, seen = [data], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > _MOST_VALUES:
            raise ValueError(f"it stands for more than {_MOST_VALUES} values")
        if isinstance(node, Mapping):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return data


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys (or their short aliases) into nested plain values."""
    out: dict[str, Any] = {}
    for short, value in flat.items():
        node = out
        *sections, leaf = full_key(short).split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return out


def nest_sections(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Turn keyword overrides, whole sections and short or dotted keys, into nested values."""
    sections = {k: v for k, v in overrides.items() if isinstance(v, Mapping)}
    return merge(sections, nest({k: v for k, v in overrides.items() if k not in sections}))


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later ones win key by key, and an empty section changes nothing."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = out.get(key)
            if isinstance(below, Mapping) and (value is None or isinstance(value, Mapping)):
                out[key] = merge(below, value or {})
            else:
                out[key] = value
    return out


def _coerce(value: Any, hint: Any, key: str, at: str) -> Any:
    """Return ``value`` as one of the types of ``hint``; whole numbers count as real ones."""
    options = _options(hint)
    literals = [
        word
        for option in options
        if typing.get_origin(option) is typing.Literal
        for word in typing.get_args(option)
    ]
    # YAML reads an unquoted null as None and off as False; where the word is valid it was meant.
    word = {None: "none", False: "off"}.get(value) if value is None or value is False else value
    if isinstance(word, str) and word in literals:
        return word
    for option in options:
        if option is type(None) and value is None:
            return None
        if option is float and (number := _number(value)) is not None:
            return number
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is str and isinstance(value, str):
            return value
        if option is str and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if option is str and isinstance(value, list) and _is_list(value):
            return ",".join(str(v) for v in value)
    names = [repr(v) for v in literals]
    names += [_NAMES[o] for o in options if o in _NAMES]
    raise ConfigError(f"{at}{key} is {value!r}; expected {' or '.join(names)}.")


_NAMES = {
    float: "a finite number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def _number(value: Any) -> float | None:
    """Read a number; YAML 1.1 takes ``1e-3`` for text, people do not."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, str | int) and not isinstance(v, bool) for v in value
    )


def _of_method(key: str) -> bool:
    """Whether a key belongs to the section whose keys are a method's own."""
    section, _, name = key.partition(".")
    return bool(name) and typing.get_type_hints(Recipe).get(section) == dict[str, Any]


def _hint(key: str) -> Any:
    """Return the type of a dotted key; of a method's own keys any will do here."""
    if _of_method(key):
        return None
    hint: Any = Recipe
    for part in key.split("."):
        hint = typing.get_type_hints(hint)[part]
    return hint


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)
