"""One example, and how it is read from a row."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from bayestune.data.labels import Label, as_integer, as_label
from bayestune.data.layouts import standard
from bayestune.data.numbers import as_number
from bayestune.errors import DataError, nearest

Kind = Literal["classification", "choice", "regression"]

KINDS: tuple[Kind, ...] = get_args(Kind)

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Fields:
    """The columns that a task reads; ``text2`` is None where there is no second text.

    ``label`` or ``answer`` is None where labels are to be ignored, ``passage`` where there is none.
    """

    text: str = "text"
    text2: str | None = None
    label: str | None = "label"
    question: str = "question"
    choices: str = "choices"
    answer: str | None = "answer"
    passage: str | None = "passage"


@dataclass(frozen=True)
class Example:
    """One item: a text or a pair of texts, or a question with choices and perhaps a passage.

    ``label`` is the class index, or -1 where there is none; ``value`` is the number of a regression
    task, or None where there is none. ``id`` is the row's own ``id`` or else its 1-based line
    number.
    """

    id: str | int
    text: str | None = None
    text2: str | None = None
    question: str | None = None
    choices: tuple[str, ...] | None = None
    passage: str | None = None
    label: int = -1
    value: float | None = None

    @property
    def content(self) -> str:
        """What is read of it, as JSON: neither its id nor its label."""
        return json.dumps([self.text, self.text2, self.question, self.choices, self.passage])


class Parsed(NamedTuple):
    """An example whose class is not yet looked up, with what the row says about it."""

    example: Example
    label: Label | None
    label_name: str | None
    where: str


def read_kind(row: Mapping[str, Any], fields: Fields) -> Kind:
    """Return ``"choice"`` for a row with question and choices, unless another text is named."""
    row = standard(row, fields)
    named = fields.text != Fields.text and fields.text in row
    choice = fields.question in row and fields.choices in row
    return "choice" if choice and not named else "classification"


def read_example(
    row: Mapping[str, Any],
    number: int,
    where: str,
    kind: Kind,
    fields: Fields,
    *,
    strict: bool,
    untyped: bool = False,
) -> Parsed:
    """Read one row.

    Args:
        row: the cells by column.
        number: the 1-based line number, which is the id where the row has none.
        where: how errors name the row.
        kind: what the task is.
        fields: the columns to read.
        strict: whether a label and texts that are not empty are required, as in training.
        untyped: whether every cell is text, as in CSV.

    Raises:
        DataError: naming the row and the column that cannot be used.
    """
    if kind == "choice":
        row = standard(row, fields)
    return _READ[kind](row, _read_id(row, number, where), where, fields, strict, untyped)


def _read_classification(
    row: Mapping[str, Any], id: str | int, where: str, fields: Fields, strict: bool, untyped: bool
) -> Parsed:
    example = _read_texts(row, id, where, fields, strict)
    cell = _label_cell(row, fields.label, where, strict)
    if cell is None:
        return Parsed(example, None, None, where)
    if isinstance(cell, float) and math.isfinite(cell) and not cell.is_integer():
        raise DataError(
            f"{where}: {fields.label!r} is {cell}; a label is an integer or a string. To predict "
            "numbers, ask for regression (--task regression, kind='regression')."
        )
    label = as_label(cell, f"{where}: {fields.label!r}")
    if label == -1 or (untyped and label == "-1"):
        if strict:
            raise DataError(
                f"{where}: label -1 marks an unlabelled or out-of-scope row and cannot be trained "
                "on; take the row out or give the class another number."
            )
        return Parsed(example, None, None, where)
    name = row.get(f"{fields.label}_name")
    name = name.strip() if isinstance(name, str) and name.strip() else None
    return Parsed(example, label, name, where)


def _read_regression(
    row: Mapping[str, Any], id: str | int, where: str, fields: Fields, strict: bool, untyped: bool
) -> Parsed:
    example = _read_texts(row, id, where, fields, strict)
    cell = _label_cell(row, fields.label, where, strict)
    if cell is not None:
        number = as_number(cell, f"{where}: {fields.label!r}", untyped=untyped)
        example = replace(example, value=number)
    return Parsed(example, None, None, where)


def _read_texts(
    row: Mapping[str, Any], id: str | int, where: str, fields: Fields, strict: bool
) -> Example:
    text = _text(row, fields.text, where, strict)
    text2 = _text(row, fields.text2, where, strict) if fields.text2 else None
    return Example(id, text=text, text2=text2)


def _read_choice(
    row: Mapping[str, Any], id: str | int, where: str, fields: Fields, strict: bool, untyped: bool
) -> Parsed:
    question = _text(row, fields.question, where, strict)
    passage = None
    if fields.passage and row.get(fields.passage) is not None:
        passage = _text(row, fields.passage, where, strict=False)
    choices, markers = _choices(row, fields.choices, where, strict, untyped)
    cell = _label_cell(row, fields.answer, where, strict)
    label = -1
    if cell is not None and (strict or str(cell) not in ("-1", "-1.0")):
        label = _answer(cell, choices, markers, f"{where}: {fields.answer!r}", untyped)
    example = Example(id, question=question, choices=choices, passage=passage or None, label=label)
    return Parsed(example, None, None, where)


_READ = {
    "classification": _read_classification,
    "choice": _read_choice,
    "regression": _read_regression,
}


def _read_id(row: Mapping[str, Any], number: int, where: str) -> str | int:
    id = row.get("id")
    if id is None or id == "":
        return number
    if isinstance(id, str | int) and not isinstance(id, bool):
        return id
    raise DataError(f"{where}: 'id' is {id!r}; expected a string or an integer.")


def _cell(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise DataError(f"{where}: no {key!r}.{nearest(key, row)}")
    return row[key]


def _text(row: Mapping[str, Any], key: str, where: str, strict: bool) -> str:
    return _checked_text(_cell(row, key, where), f"{where}: {key!r}", strict)


def _checked_text(value: object, subject: str, strict: bool) -> str:
    if not isinstance(value, str):
        shown = "null" if value is None else f"{value!r:.40}"
        raise DataError(f"{subject} is {shown}; expected a string.")
    if strict and not value.strip():
        raise DataError(f"{subject} is empty.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{subject} holds half a surrogate pair at position {error.start + 1}, which is "
                "not text."
            ) from error
    return value


def _label_cell(row: Mapping[str, Any], key: str | None, where: str, strict: bool) -> Any:
    """Return the cell, or None where there is no label and none is needed."""
    if key is None:
        return None
    if strict:
        cell = _cell(row, key, where)
        if cell is None:
            raise DataError(f"{where}: {key!r} is null; this task needs every label.")
        return cell
    cell = row.get(key)
    missing = cell is None or cell == "" or (isinstance(cell, float) and cell != cell)
    return None if missing else cell


def _choices(
    row: Mapping[str, Any], key: str, where: str, strict: bool, untyped: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the choices and the markers that the row itself gives them (A, B, … or 1, 2, …)."""
    subject = f"{where}: {key!r}"
    cell = _cell(row, key, where)
    if untyped and isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise DataError(f'{subject} must be a JSON list such as ["yes", "no"].') from error
    markers: object = ()
    if isinstance(cell, Mapping) and {"text", "label"} <= cell.keys():
        cell, markers = cell["text"], cell["label"]
    if not isinstance(cell, Sequence) or isinstance(cell, str):
        raise DataError(f"{subject} is {cell!r:.40}; expected a list of strings.")
    if not 2 <= len(cell) <= len(LETTERS):
        raise DataError(f"{subject} has {len(cell)} choices; expected 2 to {len(LETTERS)}.")
    choices = tuple(
        _checked_text(choice, f"{subject} entry {i}", strict) for i, choice in enumerate(cell)
    )
    if not isinstance(markers, Sequence) or len(markers) not in (0, len(choices)):
        raise DataError(f"{subject} has {len(choices)} texts but not as many labels.")
    return choices, tuple(map(str, markers))


def _answer(
    cell: object, choices: Sequence[str], markers: Sequence[str], subject: str, untyped: bool
) -> int:
    """Return the index of the answer, which is an index, a marker, a letter or a choice's text."""
    letters = LETTERS[: len(choices)]
    expected = (
        f"expected an index from 0 to {len(choices) - 1}, a letter from A to {letters[-1]} or "
        "the text of one choice."
    )
    if isinstance(cell, bool):
        raise DataError(f"{subject} is {str(cell).lower()}; {expected}")
    label = as_label(cell, subject)
    number = as_integer(label) if untyped and isinstance(label, str) else label
    found: set[int] = set()
    if isinstance(number, int) and 0 <= number < len(choices):
        found.add(number)
    if isinstance(label, str):
        if markers.count(label) == 1:
            return markers.index(label)  # what a marker says is no text of another choice
        if not markers and label.upper() in tuple(letters):
            found.add(letters.index(label.upper()))
        found |= {i for i, choice in enumerate(choices) if choice.strip() == label}
    if not found:
        raise DataError(f"{subject} is {cell!r:.40}; {expected}")
    if len(found) > 1:
        raise DataError(f"{subject} {cell!r:.40} could mean any of the choices {sorted(found)}.")
    return found.pop()
