"""From the rows of a source to examples with classes: kind, columns, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from bayestune.data.example import (
    KINDS,
    Example,
    Fields,
    Kind,
    Parsed,
    read_example,
    read_kind,
)
from bayestune.data.labelling import (
    assign,
    check_choices,
    check_whole,
    choice_labels,
    inferred_labels,
    named_labels,
    typed,
)
from bayestune.data.labels import LabelSet, read_label_names
from bayestune.data.rows import RowSource
from bayestune.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from bayestune.data.task import Task

COLUMNS = tuple(f.name for f in fields(Fields))


class Reading(NamedTuple):
    """What a task is made of."""

    kind: Kind
    examples: tuple[Example, ...]
    labels: LabelSet
    fields: Fields
    source: str


class TaskOptions(TypedDict, total=False):
    """What every way of reading a task takes; all are optional.

    ``kind`` is ``"classification"``, ``"choice"`` or ``"regression"``, whose labels are numbers to
    be predicted; without it rows with question and choices are a choice, others classification.

    Columns: ``text`` and ``text2`` (a column of that name is read where the first row has it; None
    ignores it, as does naming another ``text``), ``label`` (None ignores the labels), and for rows
    with choices ``question``, ``choices``, ``answer`` (an index, a letter or the text of a choice;
    None ignores it) and ``passage``.

    ``labels`` gives the classes: a `LabelSet`, a sequence of names or the path of a JSON list of
    names. Without it they come from ``like``, from the data set's own features, from a
    ``labels.json`` beside the file, or else are the sorted labels of the rows.

    ``like`` is a task whose kind, classes and columns are taken over, as a test set takes those of
    its training set. ``limit`` reads the first rows only.

    ``require_labels`` (True) makes a missing or unknown label, a label of -1 and an empty text
    errors. With False empty texts are kept, and a label that is missing or not one of the classes
    becomes -1: unlabelled or out of scope.
    """

    kind: Kind
    text: str
    text2: str | None
    label: str | None
    question: str
    choices: str
    answer: str | None
    passage: str | None
    labels: LabelSet | Sequence[str] | Path | None
    like: Task | None
    limit: int | None
    require_labels: bool


def read_task(source: RowSource, options: TaskOptions) -> Reading:
    """Read all rows of a source.

    Raises:
        DataError: naming the source, the line and what is wrong with it.
        ConfigError: if an option is unknown or contradicts another.
    """
    unknown = [key for key in options if key not in TaskOptions.__annotations__]
    if unknown:
        valid = TaskOptions.__annotations__
        raise ConfigError(f"Unknown option {unknown[0]!r}.{nearest(unknown[0], valid)}")
    like, given = options.get("like"), options.get("labels")
    strict = options.get("require_labels", True)
    if like is not None and given is not None:
        raise ConfigError("Give either labels or like, not both: like brings its own labels.")
    columns = replace(
        like.fields if like is not None else Fields(),
        **{key: value for key, value in options.items() if key in COLUMNS},
    )
    rows = iter(source.rows)
    number, row = next(rows)
    kind = _kind(row, columns, options)
    if like is None and kind != "choice" and options.keys().isdisjoint(("text", "text2")):
        columns = replace(columns, text2="text2" if isinstance(row.get("text2"), str) else None)
    ignored = columns.answer is None if kind == "choice" else columns.label is None
    if strict and ignored:
        raise ConfigError("Labels cannot be both ignored and required: add require_labels=False.")

    def read(number: int, row: Mapping[str, Any]) -> Parsed:
        where = source.where(number)
        return read_example(
            row, number, where, kind, columns, strict=strict, untyped=source.untyped
        )

    parsed = [read(number, row), *(read(number, row) for number, row in rows)]
    if kind == "choice":
        if given is not None:
            raise ConfigError("A question's classes are the letters of its choices; drop labels.")
        labels = like.labels if like is not None else choice_labels(parsed)
        return Reading(kind, check_choices(parsed, labels), labels, columns, source.name)
    if kind == "regression":
        if given is not None:
            raise ConfigError("Numbers have no classes; drop labels.")
        examples = tuple(p.example for p in parsed)
        return Reading(kind, examples, LabelSet((), ()), columns, source.name)
    names = None if like is not None else _class_names(source, columns.label, given)
    if source.untyped:
        parsed = typed(parsed, like.labels.names if like is not None else names)
    if like is not None:
        labels = like.labels
    elif isinstance(given, LabelSet):
        labels = given
    elif names is not None:
        labels = named_labels(parsed, names)
    else:
        if source.untyped and "kind" not in options:
            check_whole(parsed, source.name)
        labels = inferred_labels(parsed)
    examples = assign(parsed, labels, strict=strict, check_names=given is None)
    if strict and like is None:
        _check_classes(examples, labels, source.name)
    return Reading(kind, examples, labels, columns, source.name)


def _kind(row: Mapping[str, Any], columns: Fields, options: TaskOptions) -> Kind:
    like, asked = options.get("like"), options.get("kind")
    if asked is not None and asked not in KINDS:
        raise ConfigError(f"Unknown kind of task {asked!r}.{nearest(asked, KINDS)}")
    if like is None:
        return asked or read_kind(row, columns)
    if asked not in (None, like.kind):
        raise ConfigError(f"kind is {asked!r}, but like is a {like.kind} task; drop one of them.")
    return like.kind


def _class_names(
    source: RowSource, label: str | None, given: LabelSet | Sequence[str] | Path | None
) -> tuple[str, ...] | None:
    """Return the names given, declared by the data set or written in a labels.json beside it."""
    if isinstance(given, LabelSet):
        return given.names
    if isinstance(given, str | Path):
        return read_label_names(given)
    if given is not None:
        return tuple(LabelSet.from_json(list(given)).names)
    if label is not None and label in source.class_names:
        return source.class_names[label]
    beside = source.folder / "labels.json" if source.folder is not None else None
    return read_label_names(beside) if beside is not None and beside.exists() else None


def _check_classes(examples: Sequence[Example], labels: LabelSet, source: str) -> None:
    present = {example.label for example in examples}
    if len(present) < 2:
        raise DataError(
            f"{source or 'The rows'}: every label is {labels[present.pop()]!r}; training needs at "
            "least two classes. Is the file sorted and the limit too low?"
        )
