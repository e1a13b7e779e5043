"""Layouts of well-known multiple-choice data sets, as rows of question, choices and answer.

A layout is recognised by its columns, in a row that cannot be read as it stands; a row that has
them under the standard names, or a task that names columns of its own, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayestune.data.example import Fields

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How one data set writes its rows.

    Args:
        columns: all columns by which it is recognised.
        absent: columns that it does not have.
        convert: a row as ``question``, ``choices``, ``answer`` and perhaps ``passage``; other
            columns, such as ``id``, stay.
    """

    columns: tuple[str, ...]
    absent: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any]]

    def fits(self, row: Row) -> bool:
        """Return whether a row is of this layout."""
        return all(c in row for c in self.columns) and not any(c in row for c in self.absent)


def _arc(row: Row) -> dict[str, Any]:
    return {**row, "answer": row["answerKey"]}


def _openbookqa(row: Row) -> dict[str, Any]:
    return {**row, "question": row["question_stem"], "answer": row["answerKey"]}


def _winogrande(row: Row) -> dict[str, Any]:
    choices = {"text": [row["option1"], row["option2"]], "label": ["1", "2"]}
    answer = row.get("answer")
    marker = str(answer) if type(answer) is int else answer
    return {**row, "question": row["sentence"], "choices": choices, "answer": marker}


def _boolq(row: Row) -> dict[str, Any]:
    answer = str(row["answer"]).strip().lower()
    if answer not in ("false", "true"):
        return dict(row)
    return {**row, "choices": ["no", "yes"], "answer": int(answer == "true")}


#: By data set; MMLU's layout (a list of choices, an index as the answer) is the standard one.
LAYOUTS = {
    "arc": Layout(("question", "choices", "answerKey"), ("answer",), _arc),
    "openbookqa": Layout(
        ("question_stem", "choices", "answerKey"), ("question", "answer"), _openbookqa
    ),
    "winogrande": Layout(("sentence", "option1", "option2"), ("question", "choices"), _winogrande),
    "boolq": Layout(("question", "passage", "answer"), ("choices",), _boolq),
}


def standard(row: Row, fields: Fields) -> Row:
    """Return a row of a known layout under the standard names; any other row as it is."""
    default = type(fields)()
    if "text" in row or (fields.question, fields.choices) != (default.question, default.choices):
        return row
    if fields.answer not in (default.answer, None):
        return row
    found = next((layout for layout in LAYOUTS.values() if layout.fits(row)), None)
    return row if found is None else found.convert(row)
