"""Rows of one source through one model, in order, a few at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from bayestune.data import Example
from bayestune.data.rows import RowSource
from bayestune.errors import DataError, NumericsError
from bayestune.model import BayesModel
from bayestune.progress import Advance
from bayestune.scoring.output import Output

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """Rows of one source through one model.

    Attributes:
        model: predicts.
        source: rows, or the errors of bad ones.
        batch_size: texts in a pass.
        report: takes the sentence about a line that cannot be predicted.
        good: rows predicted so far.
        bad: lines that could not be.
        read: rows of the source so far.
    """

    model: BayesModel
    source: RowSource
    batch_size: int
    report: Callable[[str], None] = logger.warning
    good: int = 0
    bad: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self._rows = iter(self.source.rows)

    def skip(self, read: int, good: int, bad: int) -> int:
        """Pass over what an earlier process read, whose counts go on; return how many rows."""
        self.read, self.good, self.bad = read, good, bad
        return sum(1 for _ in islice(self._rows, read))

    def run(
        self,
        output: Output,
        chunk: int,
        advance: Advance,
        keep: Callable[[int, int, int], None] = lambda read, good, bad: None,
    ) -> None:
        """Predict everything, holding only ``chunk`` rows at a time; ``keep`` is told of each."""
        examples = self._examples()
        while some := list(islice(examples, chunk)):
            rows = list(self._predict(some))
            self.good += len(rows)
            output.put(rows)
            keep(self.read, self.good, self.bad)
            advance(len(some))

    def finish(self, *, strict: bool, empty_is_bad: bool, written: bool) -> None:
        """Stop where nothing was usable, or where a bad line is not to be tolerated."""
        if self.good == 0 and (self.bad or empty_is_bad):
            found = f"none of its {self.bad} lines" if self.bad else "it is empty: nothing"
            raise DataError(f"{self.source.name}: {found} can be predicted.")
        if strict and self.bad:
            kept = "the other rows were written" if written else "no file was written"
            raise DataError(
                f"{self.source.name}: {self.bad} of {self.good + self.bad} lines are bad; {kept}."
            )

    def _examples(self) -> Iterator[tuple[str, Example]]:
        """Read one row after another; whatever labels they have are not looked at."""
        task = self.model.task.unlabelled()
        item: Any
        for number, item in self._rows:
            self.read += 1
            where = self.source.where(number)
            try:
                if isinstance(item, DataError):
                    raise item
                untyped = self.source.untyped
                yield where, task.parse(item, number, where, untyped=untyped)
            except DataError as error:
                self._report(str(error))

    def _predict(self, some: list[tuple[str, Example]]) -> Iterator[dict[str, Any]]:
        """Predict examples together; where that fails, one by one to find those at fault."""
        examples = tuple(example for _, example in some)
        try:
            task = replace(self.model.task, examples=examples)
            prediction = self.model.predict(task, self.batch_size)
        except (DataError, NumericsError) as error:
            if len(some) == 1:
                self._report(f"{some[0][0]}: {error}")
            else:
                for one in some:
                    yield from self._predict([one])
            return
        yield from prediction.rows([example.id for example in examples])

    def _report(self, problem: str) -> None:
        self.bad += 1
        self.report(problem)
