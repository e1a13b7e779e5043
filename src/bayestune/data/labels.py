"""The classes of a task: what the rows call them and how they are shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bayestune.errors import DataError, nearest

Label = str | int

# Canonical only: "007" is a name, not the number 7. pandas writes "1.0" for integers beside gaps.
_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,17})(\.0+)?")


def as_integer(cell: str) -> Label:
    """Return the integer that a cell spells canonically (``"3"``, ``"3.0"``), else its text."""
    match = _INTEGER.fullmatch(cell)
    return int(match[1]) if match else cell


def as_label(value: object, subject: str = "The label") -> Label:
    """Return the label that a cell holds.

    Booleans are the names ``"true"`` and ``"false"``, integral floats are integers, and text loses
    the white space around it.

    Args:
        value: the cell.
        subject: what an error calls it.

    Raises:
        DataError: if the value is missing, NaN, fractional, empty or nested.
    """
    if not isinstance(value, str) and hasattr(value, "item"):
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]  # a NumPy scalar
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if math.isfinite(value) and value.is_integer():
            return int(value)
        raise DataError(f"{subject} is {value}; a label is an integer or a string.")
    if isinstance(value, str):
        if value.strip():
            return value.strip()
        raise DataError(f"{subject} is empty; a label is an integer or a string.")
    if value is None:
        raise DataError(f"{subject} is null; a label is an integer or a string.")
    raise DataError(f"{subject} is a {type(value).__name__}; expected an integer or a string.")


@dataclass(frozen=True)
class LabelSet:
    """The classes in their order; a sequence of display names.

    Args:
        values: what the rows hold, one per class: all integers or all strings.
        names: the display names in the same order.

    Raises:
        DataError: if the two differ in length, types are mixed, or a value or name stands twice.
    """

    values: tuple[Label, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.names):
            raise DataError(f"{len(self.values)} label values but {len(self.names)} names.")
        if len({type(value) for value in self.values}) > 1:
            raise DataError(f"Labels mix integers and strings: {list(self.values)[:12]}.")
        for kind, items in (("value", self.values), ("name", self.names)):
            twice = sorted({str(item) for item in items if items.count(item) > 1})
            if twice:
                raise DataError(f"The label {kind} {twice[0]!r} stands for two classes.")

    @classmethod
    def from_names(cls, names: Iterable[str]) -> LabelSet:
        """Return the classes 0, 1, … with these names in order."""
        names = tuple(names)
        return cls(tuple(range(len(names))), names)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    @cached_property
    def _by_value(self) -> dict[Label, int]:
        return {value: i for i, value in enumerate(self.values)}

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def index(self, value: object) -> int:
        """Return the class index of a value, of a name, or of a value spelt as text.

        An integer is never looked up among the names of integer classes: with the names
        ``("1", "2")`` the integer 1 is the second class.

        Raises:
            DataError: if no class is meant, or two are.
        """
        label = as_label(value)
        if label in self._by_value:
            return self._by_value[label]
        integers = bool(self.values) and isinstance(self.values[0], int)
        if not (isinstance(label, int) and integers):
            by_name = self._by_name.get(str(label))
            number = as_integer(label) if isinstance(label, str) else str(label)
            by_value = self._by_value.get(number)
            if by_name is not None and by_value is not None and by_name != by_value:
                raise DataError(
                    f"The label {label!r} is the name of class {by_name} and the number of class "
                    f"{by_value}: write integers, or names that are not numbers."
                )
            found = by_name if by_name is not None else by_value
            if found is not None:
                return found
        valid = dict.fromkeys([*self.names, *map(str, self.values)])
        raise DataError(f"Unknown label {label!r}.{nearest(label, valid)}")

    def to_json(self) -> dict[str, list[Any]]:
        """Return ``{"values": […], "names": […]}``."""
        return {"values": list(self.values), "names": list(self.names)}

    @classmethod
    def from_json(cls, content: object) -> LabelSet:
        """Return the classes from what `to_json` wrote, or from a plain list of names.

        Raises:
            DataError: if the content has another form.
        """
        if isinstance(content, list):
            return cls.from_names(_checked_names(content, "The label list"))
        if not isinstance(content, Mapping) or not {"values", "names"} <= content.keys():
            raise DataError("Labels are a list of names, or an object with 'values' and 'names'.")
        values, names = content["values"], content["names"]
        if not isinstance(values, list) or not isinstance(names, list):
            raise DataError("The labels' 'values' and 'names' must be lists.")
        return cls(tuple(map(as_label, values)), _checked_names(names, "The labels' 'names'"))


def read_label_names(path: str | Path) -> tuple[str, ...]:
    """Read a JSON list of class names in class order.

    Raises:
        DataError: if the file cannot be read or is not a list of distinct names.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON list of class names ({error}).") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a JSON list of class names in class order.")
    return _checked_names(content, str(path))


def _checked_names(names: Sequence[object], where: str) -> tuple[str, ...]:
    for position, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: entry {position} is {name!r}, not a class name.")
    checked = tuple(str(name) for name in names)
    if len(set(checked)) < len(checked):
        twice = next(name for name in checked if checked.count(name) > 1)
        raise DataError(f"{where}: the name {twice!r} stands twice.")
    return checked
