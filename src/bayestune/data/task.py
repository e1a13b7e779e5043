"""A task: examples of one kind, their classes and the columns they were read from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from bayestune.data.example import KINDS, Example, Fields, Kind, Parsed, read_example
from bayestune.data.labelling import assign, check_choices
from bayestune.data.labels import LabelSet
from bayestune.data.reading import COLUMNS, TaskOptions, read_task
from bayestune.data.rows import RowSource, open_rows
from bayestune.data.split import held_out
from bayestune.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class Task:
    """Examples with their classes.

    Args:
        kind: ``"classification"`` of a text or a pair of texts, ``"choice"`` among the answers of
            a question, whose classes are the letters A, B, …, or ``"regression"`` of a number on
            them.
        examples: the items in the order of the file.
        labels: the classes; none for regression.
        fields: the columns.
        source: where the rows came from.
    """

    kind: Kind
    examples: tuple[Example, ...] = field(repr=False)
    labels: LabelSet
    fields: Fields = field(default_factory=Fields)
    source: str = ""

    @classmethod
    def load(cls, source: str | Path, **options: Unpack[TaskOptions]) -> Task:
        """Read a ``.jsonl``, ``.csv`` or ``.parquet`` file or ``hf:ORG/NAME[/CONFIG][:SPLIT]``.

        Args:
            source: the file or data set.
            **options: see `TaskOptions`.

        Raises:
            DataError: naming the file, the line and what is wrong with it.
            ConfigError: if an option is unknown or contradicts another.
        """
        return cls(*read_task(open_rows(source, limit=options.get("limit")), options))

    @classmethod
    def from_jsonl(cls, path: str | Path, **options: Unpack[TaskOptions]) -> Task:
        """Read one JSON object per line, whatever the file is called; see `load`."""
        return cls(*read_task(open_rows(path, ".jsonl", options.get("limit")), options))

    @classmethod
    def from_csv(cls, path: str | Path, **options: Unpack[TaskOptions]) -> Task:
        """Read a CSV file with a header, whatever it is called; see `load`.

        Cells have no types: labels are integers where all of them are spelt as integers, and
        choices are a JSON list in one cell.
        """
        return cls(*read_task(open_rows(path, ".csv", options.get("limit")), options))

    @classmethod
    def from_parquet(cls, path: str | Path, **options: Unpack[TaskOptions]) -> Task:
        """Read a Parquet file, whatever it is called; needs ``bayestune[data]``; see `load`."""
        return cls(*read_task(open_rows(path, ".parquet", options.get("limit")), options))

    @classmethod
    def from_hub(cls, name: str, **options: Unpack[TaskOptions]) -> Task:
        """Read ``ORG/NAME[/CONFIG][:SPLIT]`` from the Hugging Face Hub; see `load`."""
        return cls.load(name if name.startswith("hf:") else f"hf:{name}", **options)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], **options: Unpack[TaskOptions]) -> Task:
        """Take rows that are already in memory; see `load`. Errors count them from 1."""
        limit = options.get("limit")
        listed = [dict(row) for row in rows][:limit]
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; it must be at least 1 (or None for all rows).")
        if not listed:
            raise DataError("There are no rows.")
        return cls(*read_task(RowSource("", "row", enumerate(listed, start=1)), options))

    @classmethod
    def from_texts(cls, texts: Iterable[str | tuple[str, str]], like: Task | None = None) -> Task:
        """Take unlabelled texts, or pairs where ``like`` reads pairs; their ids count from 1.

        Raises:
            DataError: if an item is not a text (or pair), or ``like`` is a choice task.
        """
        kind: Kind = like.kind if like is not None else "classification"
        if like is not None and kind == "choice":
            raise DataError(
                "The task asks questions with choices: give rows with "
                f"{like.fields.question!r} and {like.fields.choices!r} instead of texts."
            )
        columns = like.fields if like is not None else Fields()
        items = [texts] if isinstance(texts, str) else list(texts)
        pairs = any(isinstance(item, tuple | list) for item in items)
        if like is None and pairs:
            columns = replace(columns, text2="text2")
        names = (columns.text, columns.text2) if columns.text2 else (columns.text,)
        parsed: list[Parsed] = []
        for number, item in enumerate(items, start=1):
            parts = tuple(item) if isinstance(item, tuple | list) else (item,)
            if len(parts) != len(names):
                expected = "a pair of texts" if columns.text2 else "one text"
                raise DataError(f"text {number}: got {len(parts)} texts; expected {expected}.")
            row = dict(zip(names, parts, strict=True))
            where = f"text {number}"
            parsed.append(read_example(row, number, where, kind, columns, strict=False))
        labels = like.labels if like is not None else LabelSet((), ())
        return cls(kind, tuple(p.example for p in parsed), labels, columns, "texts")

    def parse(
        self, row: Mapping[str, Any], number: int = 1, where: str = "", *, untyped: bool = False
    ) -> Example:
        """Read one more row as this task reads its own, labels not required.

        Args:
            row: the cells by column.
            number: the id of a row without one.
            where: how errors name the row.
            untyped: whether every cell is text, as in CSV.

        Raises:
            DataError: naming ``where`` (or the row's number) and what is wrong.
        """
        where = where or f"row {number}"
        parsed = read_example(
            row, number, where, self.kind, self.fields, strict=False, untyped=untyped
        )
        if self.kind == "choice":
            return check_choices([parsed], self.labels)[0]
        if self.kind == "regression":
            return parsed.example
        return assign([parsed], self.labels, strict=False, check_names=True)[0]

    def schema(self) -> dict[str, Any]:
        """Return kind, classes and columns as plain JSON, without examples."""
        return {
            "kind": self.kind,
            "labels": self.labels.to_json(),
            "fields": asdict(self.fields),
        }

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any]) -> Task:
        """Return a task without examples from what `schema` wrote; it serves as ``like``.

        Raises:
            DataError: if the content has another form.
        """
        missing = {"kind", "labels", "fields"} - schema.keys()
        if missing:
            raise DataError(f"The task's schema has no {sorted(missing)[0]!r}.")
        kind, columns = schema["kind"], schema["fields"]
        if kind not in KINDS:
            raise DataError(f"Unknown kind of task {kind!r}.{nearest(kind, KINDS)}")
        if not isinstance(columns, Mapping) or not columns.keys() <= set(COLUMNS):
            raise DataError(f"The task's fields must be among {list(COLUMNS)}.")
        return cls(kind, (), LabelSet.from_json(schema["labels"]), Fields(**columns))

    def unlabelled(self) -> Task:
        """Return the same task without examples, whose `parse` does not look at labels."""
        return replace(self, examples=(), fields=replace(self.fields, label=None, answer=None))

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def title(self) -> str:
        """What a message calls the data."""
        return self.source or "The data"

    @property
    def targets(self) -> list[int]:
        """The class index of each example, -1 where there is none."""
        return [example.label for example in self.examples]

    @property
    def values(self) -> list[float]:
        """The number of each example of a regression task, NaN where there is none."""
        return [math.nan if e.value is None else e.value for e in self.examples]

    @property
    def outputs(self) -> int:
        """How many outputs the last layer has: one per class, or one number."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The number of examples of each class, in class order; unlabelled ones do not count."""
        counts = [0] * len(self.labels)
        for example in self.examples:
            if example.label >= 0:
                counts[example.label] += 1
        return tuple(counts)

    @property
    def choice_counts(self) -> tuple[int, ...] | None:
        """The number of choices of each example, beyond which logits are masked; None otherwise."""
        if self.kind != "choice":
            return None
        return tuple(len(example.choices or ()) for example in self.examples)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of kind, classes and examples; ids, columns and source do not count."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.kind, self.labels.to_json()]).encode())
        for e in self.examples:
            content = [e.text, e.text2, e.question, e.choices, e.passage, e.label]
            content += [] if e.value is None else [e.value]
            digest.update(b"\n" + json.dumps(content).encode())
        return digest.hexdigest()

    def select(self, indices: Iterable[int]) -> Task:
        """Return the examples at these positions, in this order.

        Raises:
            ConfigError: if a position is outside ``0 … len - 1``.
        """
        chosen = list(indices)
        for i in chosen:
            if not 0 <= i < len(self):
                raise ConfigError(f"Position {i} is outside the task's {len(self)} examples.")
        return replace(self, examples=tuple(self.examples[i] for i in chosen))

    def limit(self, count: int) -> Task:
        """Return the first examples, at most ``count``, whatever their classes."""
        if count < 1:
            raise ConfigError(f"limit is {count}; it must be at least 1.")
        return replace(self, examples=self.examples[:count])

    def split(self, fraction: float, seed: int = 0) -> tuple[Task, Task]:
        """Return what stays and what is held out, stratified by label.

        Both keep the order of the examples, and at least one example of every class stays. The
        same seed always holds out the same examples.

        Raises:
            ConfigError: if the fraction is not in (0, 1).
            DataError: if every class has a single example, so that nothing can be held out.
        """
        out = held_out(self.targets, fraction, seed)
        rest = [i for i in range(len(self)) if i not in out]
        return self.select(rest), self.select(sorted(out))
