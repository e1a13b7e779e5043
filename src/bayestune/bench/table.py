"""The table of a benchmark: mean ± standard error over seeds, paired differences, what it costs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bayestune import metrics
from bayestune.bench.afterwards import afterwards
from bayestune.bench.cell import Cell, Key, is_written, read, read_arrays
from bayestune.bench.plan import Plan
from bayestune.metrics import PairedDifference

#: Columns of metrics by title.
METRICS = {"acc": "accuracy", "NLL": "nll", "ECE": "ece", "Brier": "brier", "AURC": "aurc"}
#: Columns of what the delivered probabilities become; see `afterwards`.
AFTER = {"NLL, T": "nll", "ECE, T": "ece", "set size": "set_size"}
#: Columns of labelled rows from elsewhere.
SHIFTED = {
    "acc": "accuracy",
    "NLL": "nll",
    "ECE": "ece",
    "AUROC MI": "auroc_mutual_information",
}
#: Columns of out-of-distribution detection.
OUTSIDE = {
    "OOD max-prob": "auroc_max_prob",
    "OOD MI": "auroc_mutual_information",
    "OOD density": "auroc_density",
}


@dataclass(frozen=True)
class Line:
    """One row of a task's table.

    Attributes:
        row: its name.
        cells: one per seed, at the chosen rate.
        losses: NLL in nats of every test row, averaged over the seeds ``(N,)``.
        after: what `afterwards` gives for each seed.
    """

    row: str
    cells: tuple[Cell, ...]
    losses: torch.Tensor
    after: tuple[Mapping[str, float], ...]

    def values(self, read_one: Callable[[Cell], float]) -> list[float]:
        """Return one number per seed."""
        return [read_one(cell) for cell in self.cells]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and its standard error where there are several."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one number per seed."""
        several = len(values) > 1
        error = statistics.stdev(values) / len(values) ** 0.5 if several else None
        return cls(statistics.fmean(values), error)

    def text(self, digits: int = 3) -> str:
        """Return ``mean ± error``."""
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        return f"{self.mean:.{digits}f}{error}"


@dataclass(frozen=True)
class Entry:
    """What the table says of one row.

    Attributes:
        line: the row.
        values: estimates by the title of their column.
        best: whether its NLL is the lowest, or not significantly different from that.
        ratios: seconds of training and of predicting, relative to the reference of the same seed;
            None where they share no seed.
        gap: paired difference of its NLL and the reference's; None for the reference itself and
            where they share no seed.
        shifted: estimates on labelled rows from elsewhere, by the title of their column.
    """

    line: Line
    values: Mapping[str, Estimate]
    best: bool
    ratios: Mapping[str, float | None]
    gap: PairedDifference | None
    shifted: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The rows of one task.

    Attributes:
        task: its name.
        reference: the row that times and differences are relative to.
        counts: how many rows of text there were; see `Cell`.
        columns: titles of the estimates.
        entries: in the suite's order.
        fixed: rows whose learning rate was not tuned.
    """

    task: str
    reference: str
    counts: Mapping[str, Any]
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]
    fixed: tuple[str, ...]

    @property
    def untuned(self) -> str:
        """The rows whose learning rate was not tuned, in words; empty where all were."""
        every = len(self.fixed) == len(self.entries)
        return "all rows" if every else ", ".join(self.fixed)


def lines(plan: Plan, task: str) -> list[Line]:
    """Return the rows of a task that have cells at their chosen rate."""
    found = []
    for row in plan.rows:
        lr = plan.rate(task, row)
        keys = [] if lr is None else [Key(task, row, seed, lr) for seed in range(plan.seeds)]
        cells = [read(key, plan.out) for key in keys if is_written(key, plan.out)]
        cells = [cell for cell in cells if not cell.error]
        if cells:
            arrays = [read_arrays(cell.key, plan.out) for cell in cells]
            losses = torch.stack([_losses(each) for each in arrays]).mean(0)
            found.append(Line(row, tuple(cells), losses, tuple(map(afterwards, arrays))))
    return found


def compare(a: Line, b: Line, plan: Plan) -> PairedDifference | None:
    """Return the paired difference in NLL, a − b, over the test rows and the seeds of both.

    None where they have no seed in common.
    """
    seeds = {c.key.seed for c in a.cells} & {c.key.seed for c in b.cells}
    if not seeds:
        return None
    if len(seeds) == len(a.cells) == len(b.cells):
        return metrics.paired_difference(a.losses, b.losses)
    both = [
        torch.stack(
            [_losses(read_arrays(c.key, plan.out)) for c in line.cells if c.key.seed in seeds]
        ).mean(0)
        for line in (a, b)
    ]
    return metrics.paired_difference(*both)


def table(plan: Plan, task: str, reference: str | None = None) -> Table | None:
    """Return the table of a task; None where no row has a cell at its chosen rate.

    Args:
        plan: what was to be done; cells that are not there are left out.
        task: the task.
        reference: the row that times and differences are relative to; the first of the suite.
    """
    reference = reference or plan.rows[0]
    found = lines(plan, task)
    if not found:
        return None
    base = next((line for line in found if line.row == reference), None)
    lowest = min(found, key=lambda line: float(line.losses.mean()))
    counts = found[0].cells[0].rows
    entries = []
    for line in found:
        behind = None if line is lowest else compare(line, lowest, plan)
        gap = behind
        if base is not lowest:  # else it is the same bootstrap
            gap = None if base is None or line is base else compare(line, base, plan)
        entries.append(
            Entry(
                line,
                _values(line, list(counts["ood"])),
                line is lowest or (behind is not None and not behind.excludes_zero),
                {kind: _ratio(line, base, kind) for kind in ("train_seconds", "predict_seconds")},
                gap,
                {
                    f"{name}, {title}": Estimate.of(
                        line.values(lambda cell, n=name, k=key: cell.shifted[n][k])
                    )
                    for name in counts.get("shifted", ())
                    for title, key in SHIFTED.items()
                },
            )
        )
    fixed = tuple(line.row for line in found if len(plan.suite.tried(task, line.row)) == 1)
    return Table(task, reference, counts, tuple(entries[0].values), tuple(entries), fixed)


def markdown(plan: Plan, reference: str | None = None) -> str:
    """Return a table per task; see `table` and `to_markdown`."""
    found = [table(plan, task, reference) for task in plan.tasks]
    return "\n".join(f"{to_markdown(each)}\n" for each in found if each)


def to_markdown(found: Table) -> str:
    """Return a table as Markdown.

    Bold are the lowest NLL and those whose paired difference to it has an interval that holds 0.
    """
    counts = found.counts
    out = [
        f"### {plain(found.task)}: {counts['train']} training, {counts['val']} held-out, "
        f"{counts['test']} test rows",
        "",
    ]
    if counts["ood"]:
        outside = ", ".join(f"{plain(name)} ({n})" for name, n in counts["ood"].items())
        out += [f"Rows from elsewhere: {outside}.", ""]
    if found.fixed:
        out += [f"Learning rate not tuned: {plain(found.untuned)}.", ""]
    heads = ["", "seeds", "lr", *map(plain, found.columns), "trained", "stored", "train", "predict"]
    heads.append(f"NLL − {plain(found.reference)} [95 %]")
    out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for entry in found.entries:
        line, cost = entry.line, entry.line.cells[0].cost
        texts = [plain(line.row), str(len(line.cells)), f"{line.cells[0].key.lr:g}"]
        for title, value in entry.values.items():
            bold = title == "NLL" and entry.best
            texts.append(f"**{value.text()}**" if bold else value.text())
        texts += [f"{cost['trained']:,.0f}", f"{cost['stored']:,.0f}"]
        texts += ["–" if ratio is None else f"{ratio:.1f}×" for ratio in entry.ratios.values()]
        texts.append(gap_text(entry.gap))
        out.append("| " + " | ".join(texts) + " |")
    if found.entries[0].shifted:
        of = ", ".join(f"{plain(name)} ({n})" for name, n in counts["shifted"].items())
        heads = ["", *map(plain, found.entries[0].shifted)]
        out += ["", f"Labelled rows from elsewhere: {of}.", ""]
        out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for entry in found.entries:
            texts = [plain(entry.line.row), *(each.text() for each in entry.shifted.values())]
            out.append("| " + " | ".join(texts) + " |")
    return "\n".join(out)


def gap_text(gap: PairedDifference | None) -> str:
    """Return a paired difference with its interval, marked where that holds 0."""
    if gap is None:
        return ""
    mark = "" if gap.excludes_zero else " (n.s.)"
    return f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]{mark}"


def plain(text: str) -> str:
    """Return text as it is to be read, within a line or table of Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text)


def _values(line: Line, sets: Sequence[str]) -> dict[str, Estimate]:
    """Return the estimates of a row by the title of their column."""
    found = {title: line.values(lambda c, k=key: c.metrics[k]) for title, key in METRICS.items()}
    found |= {title: [each[key] for each in line.after] for title, key in AFTER.items()}
    for other in sets:
        for title, key in OUTSIDE.items():
            whole = f"{title}, {other}" if len(sets) > 1 else title
            found[whole] = line.values(lambda c, o=other, k=key: c.ood[o][k])
    return {title: Estimate.of(values) for title, values in found.items()}


def _ratio(line: Line, base: Line | None, kind: str) -> float | None:
    before = {} if base is None else {c.key.seed: c.cost[kind] for c in base.cells}
    ratios = [c.cost[kind] / before[c.key.seed] for c in line.cells if c.key.seed in before]
    return statistics.fmean(ratios) if ratios else None


def _losses(arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return metrics.nll(arrays["probs"], arrays["targets"], reduction="none")
