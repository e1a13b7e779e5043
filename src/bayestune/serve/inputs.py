"""The rows of a request as examples of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bayestune.data import Task
from bayestune.errors import DataError


class RowError(DataError):
    """One row of a request cannot be read.

    Args:
        position: which one, from 0.
        reason: why.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


def columns(task: Task) -> list[str]:
    """Return the columns of a row."""
    fields = task.fields
    if task.kind == "choice":
        names = [fields.question, fields.choices, fields.passage]
    else:
        names = [fields.text, fields.text2]
    return [name for name in names if name is not None]


def read_inputs(task: Task, inputs: Sequence[Any], longest: int) -> Task:
    """Return the rows of a request as examples.

    Args:
        task: of the model; without examples.
        inputs: texts, or rows by column.
        longest: characters that a row may have.

    Raises:
        RowError: naming the row by its position, from 0, and what is wrong with it.
    """
    unlabelled = task.unlabelled()
    single = task.kind != "choice" and task.fields.text2 is None
    examples = []
    for i, item in enumerate(inputs):
        if isinstance(item, str) and not single:
            raise RowError(i, f"a row of this run is an object with {columns(task)}.")
        row = {unlabelled.fields.text: item} if isinstance(item, str) else item
        try:
            example = unlabelled.parse(row, i + 1, f"inputs.{i}")
        except DataError as error:
            raise RowError(i, str(error).removeprefix(f"inputs.{i}: ")) from error
        if len(example.content) > longest:
            raise RowError(i, f"it has {len(example.content)} characters; {longest} may be.")
        examples.append(example)
    return replace(task, examples=tuple(examples))
