"""From the labels of the rows to classes: find the label set, then look every row up in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from bayestune.data.example import LETTERS, Example, Parsed
from bayestune.data.labels import Label, LabelSet, as_integer
from bayestune.errors import DataError

# "007" is a name, not a number.
_DECIMAL = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def typed(parsed: Sequence[Parsed], names: Sequence[str] | None) -> list[Parsed]:
    """Return the rows of a text-only format with integer labels where the column holds integers.

    It does where every label is spelt as one, unless all of them are names of the classes.
    """
    cells = {p.label for p in parsed if p.label is not None}
    numbers = {cell: as_integer(cell) for cell in cells if isinstance(cell, str)}
    named = names is not None and cells <= set(names)
    if named or not all(isinstance(number, int) for number in numbers.values()):
        return list(parsed)
    return [p if p.label is None else p._replace(label=numbers[str(p.label)]) for p in parsed]


def check_whole(parsed: Sequence[Parsed], source: str) -> None:
    """Ask what is meant where every label of a text-only format is a number and not all are whole.

    Raises:
        DataError: naming the source and both answers.
    """
    cells = {str(p.label) for p in parsed if isinstance(p.label, str)}
    if cells and all(map(_DECIMAL.fullmatch, cells)):
        raise DataError(
            f"{source}: every label is a number, such as {min(cells)}. Ask for regression to "
            "predict them (--task regression, kind='regression'), or for classification to take "
            "them for names of classes."
        )


def named_labels(parsed: Sequence[Parsed], names: Sequence[str]) -> LabelSet:
    """Return the classes in the order of the names.

    Integer labels are indices into the names. String labels are names; where the names look like
    numbers they are also the values, so that ``"1"`` cannot be taken for an index.
    """
    numeric = any(isinstance(as_integer(name), int) for name in names)
    strings = any(isinstance(p.label, str) for p in parsed)
    if numeric and strings:
        return LabelSet(tuple(names), tuple(names))
    return LabelSet.from_names(names)


def inferred_labels(parsed: Sequence[Parsed]) -> LabelSet:
    """Return the sorted unique labels: integers by size, strings by code point.

    Raises:
        DataError: if integers and strings are mixed, a label has two names, or a name two labels.
    """
    first: dict[Label, Parsed] = {}
    named: dict[Label, Parsed] = {}
    for p in parsed:
        if p.label is None:
            continue
        first.setdefault(p.label, p)
        if p.label_name is None:
            continue
        other = named.setdefault(p.label, p)
        if other.label_name != p.label_name:
            raise DataError(
                f"{p.where}: label {p.label!r} is called {p.label_name!r} here but "
                f"{other.label_name!r} at {other.where}."
            )
    kinds: dict[type, Parsed] = {}
    for label, p in first.items():
        kinds.setdefault(type(label), p)
    if len(kinds) > 1:
        number, text = kinds[int], kinds[str]
        raise DataError(
            f"Labels must be all integers or all strings: {number.where} has {number.label!r}, "
            f"{text.where} has {text.label!r}."
        )
    values = sorted(first)  # pyright: ignore[reportArgumentType]  # one type, as just checked
    names = [named[v].label_name if v in named else str(v) for v in values]
    by_name: dict[str | None, Label] = {}
    for value, name in zip(values, names, strict=True):
        other = by_name.setdefault(name, value)
        if other != value:
            raise DataError(
                f"{first[value].where}: the name {name!r} stands for label {value!r} here and "
                f"for label {other!r} at {first[other].where}."
            )
    return LabelSet(tuple(values), tuple(map(str, names)))


def assign(
    parsed: Sequence[Parsed], labels: LabelSet, *, strict: bool, check_names: bool
) -> tuple[Example, ...]:
    """Return the examples with their class indices.

    Args:
        parsed: the rows.
        labels: the classes.
        strict: whether a label outside the classes is an error; else it is out of scope, -1.
        check_names: whether a row's ``label_name`` must be the class's name.

    Raises:
        DataError: naming the row whose label is unknown or called otherwise.
    """
    return tuple(_assigned(p, labels, strict, check_names) for p in parsed)


def _assigned(p: Parsed, labels: LabelSet, strict: bool, check_names: bool) -> Example:
    if p.label is None:
        return p.example
    try:
        index = labels.index(p.label)
    except DataError as error:
        if strict:
            raise DataError(f"{p.where}: {error}") from None
        return p.example
    # A class without a name of its own is shown by its value; any name may be added to that.
    name = labels.names[index]
    own_name = name != str(labels.values[index])
    if check_names and own_name and p.label_name not in (None, name):
        if strict:
            raise DataError(
                f"{p.where}: label {p.label!r} is called {p.label_name!r} here, but class "
                f"{index} is {name!r}."
            )
        return p.example
    return replace(p.example, label=index)


def choice_labels(parsed: Sequence[Parsed]) -> LabelSet:
    """Return the letters A, B, … up to the largest number of choices."""
    most = max((len(p.example.choices or ()) for p in parsed), default=0)
    return LabelSet(tuple(LETTERS[:most]), tuple(LETTERS[:most]))


def check_choices(parsed: Sequence[Parsed], labels: LabelSet) -> tuple[Example, ...]:
    """Return the examples of a choice task.

    Raises:
        DataError: naming the row that has more choices than there are letters.
    """
    for p in parsed:
        count = len(p.example.choices or ())
        if count > len(labels):
            raise DataError(
                f"{p.where}: {count} choices, but the task was set up for at most {len(labels)} "
                f"({', '.join(labels)})."
            )
    return tuple(p.example for p in parsed)
