"""What a report holds, before it is a page, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bayestune.bench.table import Entry, Table


@dataclass(frozen=True)
class Bins:
    """A reliability diagram: predictions of all seeds in bins of their confidence.

    Attributes:
        counts: predictions in each bin.
        confidence: their mean confidence; None where the bin is empty.
        accuracy: the share of right ones; None where the bin is empty.
    """

    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class Unfamiliar:
    """How one score sets test rows and rows from elsewhere apart.

    Attributes:
        low: where the first bin of the histogram begins.
        high: where the last one ends; it also holds what lies beyond.
        inside: test rows of the first seed in each bin.
        outside: rows from elsewhere of the first seed in each bin.
        roc: share of rows from elsewhere that are recognised, at the report's shares of test rows
            taken for such, averaged over seeds.
        auroc: estimates over the seeds: mean and standard error.
    """

    low: float
    high: float
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    roc: tuple[float, ...]
    auroc: tuple[float, float | None]


@dataclass(frozen=True)
class Trial:
    """One learning rate that a row tried on the first seed; no NLL where the training broke off."""

    lr: float
    nll: float | None
    chosen: bool


@dataclass(frozen=True)
class Method:
    """One row of a task.

    Attributes:
        entry: its line in the table.
        point: whether it predicts without epistemic uncertainty: the simple controls.
        reliability: pooled over seeds.
        risk: share of errors at the report's coverages, averaged over seeds.
        unfamiliar: by set of other rows, then by score.
        epochs: of every seed, what the training measured: quantity → one number per epoch.
        trials: its learning rates, where it has rates of its own.
        chosen: what held-out rows chose, by name, one value per seed.
        recipe: where its recipe differs from what all have in common.
    """

    entry: Entry
    point: bool
    reliability: Bins
    risk: tuple[float, ...]
    unfamiliar: Mapping[str, Mapping[str, Unfamiliar]]
    epochs: tuple[Mapping[str, tuple[float | None, ...]], ...]
    trials: tuple[Trial, ...]
    chosen: Mapping[str, tuple[Any, ...]]
    recipe: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.line.row


@dataclass(frozen=True)
class TaskReport:
    """One task.

    Attributes:
        name: of the task.
        table: its table; None where nothing can be shown yet.
        methods: rows of the table, in its order.
        spec: where its rows of text come from; see `TaskSpec`.
        missing: sentences about trainings that are not there or broke off.
    """

    name: str
    table: Table | None
    methods: tuple[Method, ...]
    spec: Mapping[str, Any]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A benchmark, as far as it is there.

    Attributes:
        name: of the suite.
        reference: the row that times and differences are relative to.
        rows: names of all rows, in the suite's order.
        shown: the rows that charts show at first.
        tasks: in the suite's order.
        seeds: how many were wanted.
        done: trainings that are there.
        total: trainings that were wanted.
        coverages: shares of test rows answered at which `Method.risk` stands.
        rates: shares of test rows rejected at which `Unfamiliar.roc` stands.
        recipe: what all trainings have in common, by dotted key.
        environment: versions and machines, by name, all that occur.
    """

    name: str
    reference: str
    rows: tuple[str, ...]
    shown: tuple[str, ...]
    tasks: tuple[TaskReport, ...]
    seeds: int
    done: int
    total: int
    coverages: tuple[float, ...]
    rates: tuple[float, ...]
    recipe: Mapping[str, Any]
    environment: Mapping[str, tuple[str, ...]]
