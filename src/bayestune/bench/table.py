"""The table of a benchmark: mean ± standard error over seeds, paired differences, what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bayestune import metrics
from bayestune.bench.cell import Cell, Key, is_written, read, read_arrays
from bayestune.bench.plan import Plan
from bayestune.metrics import PairedDifference

#: Columns of metrics by title.
METRICS = {"acc": "accuracy", "NLL": "nll", "ECE": "ece", "Brier": "brier", "AURC": "aurc"}
#: Columns of out-of-distribution detection.
OUTSIDE = {
    "OOD max-prob": "auroc_max_prob",
    "OOD MI": "auroc_mutual_information",
    "OOD density": "auroc_density",
}


PARTS = {"train": "training", "val": "held-out", "test": "test"}


@dataclass(frozen=True)
class Line:
    """One row of a task's table.

    Attributes:
        row: its name.
        cells: one per seed, at the chosen rate.
        losses: NLL in nats of every test row, averaged over the seeds ``(N,)``.
    """

    row: str
    cells: tuple[Cell, ...]
    losses: torch.Tensor

    def values(self, read_one: Callable[[Cell], float]) -> list[float]:
        """Return one number per seed."""
        return [read_one(cell) for cell in self.cells]


def lines(plan: Plan, task: str) -> list[Line]:
    """Return the rows of a task that have cells at their chosen rate."""
    found = []
    for row in plan.rows:
        lr = plan.rate(task, row)
        keys = [] if lr is None else [Key(task, row, seed, lr) for seed in range(plan.seeds)]
        cells = [read(key, plan.out) for key in keys if is_written(key, plan.out)]
        cells = [cell for cell in cells if not cell.error]
        if cells:
            losses = [_losses(cell, plan) for cell in cells]
            found.append(Line(row, tuple(cells), torch.stack(losses).mean(0)))
    return found


def compare(a: Line, b: Line, plan: Plan) -> PairedDifference | None:
    """Return the paired difference in NLL, a − b, over the test rows and the seeds of both.

    None where they have no seed in common.
    """
    seeds = {c.key.seed for c in a.cells} & {c.key.seed for c in b.cells}
    if len(seeds) == len(a.cells) == len(b.cells):
        return metrics.paired_difference(a.losses, b.losses)
    if not seeds:
        return None
    both = [
        torch.stack([_losses(c, plan) for c in line.cells if c.key.seed in seeds]).mean(0)
        for line in (a, b)
    ]
    return metrics.paired_difference(*both)


def markdown(plan: Plan, reference: str | None = None) -> str:
    """Return a table per task.

    Bold are the lowest NLL and those whose paired difference to it has an interval that holds 0.

    Args:
        plan: what was to be done; cells that are not there are left out.
        reference: the row that times and differences are relative to; the first of the suite.
    """
    parts = []
    for task in plan.tasks:
        found = lines(plan, task)
        if found:
            parts += [_task(plan, task, found, reference or plan.rows[0]), ""]
    return "\n".join(parts)


def _task(plan: Plan, task: str, found: Sequence[Line], reference: str) -> str:
    base = next((line for line in found if line.row == reference), None)
    best = min(found, key=lambda line: float(line.losses.mean()))
    rows = found[0].cells[0].rows
    sets = list(rows["ood"])
    title = (
        f"### {task}: {rows['train']} training, {rows['val']} held-out, {rows['test']} test rows"
    )
    fixed = [line.row for line in found if len(plan.suite.tried(task, line.row)) == 1]
    heads = ["", "seeds", "lr", *METRICS]
    heads += [f"{name}, {other}" if len(sets) > 1 else name for other in sets for name in OUTSIDE]
    heads += ["trained", "stored", "train", "predict", f"NLL − {reference} [95 %]"]
    out = [title, ""]
    if sets:
        outside = ", ".join(f"{name} ({rows['ood'][name]})" for name in sets)
        out += [f"Rows from elsewhere: {outside}.", ""]
    if fixed:
        which = "all rows" if len(fixed) == len(found) else ", ".join(fixed)
        out += [f"Learning rate not tuned: {which}.", ""]
    out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for line in found:
        texts = [line.row, str(len(line.cells)), f"{line.cells[0].key.lr:g}"]
        for name, key in METRICS.items():
            text = spread(line.values(lambda c, k=key: c.metrics[k]))
            texts.append(f"**{text}**" if name == "NLL" and _ties(line, best, plan) else text)
        texts += [
            spread(line.values(lambda c, o=other, k=key: c.ood[o][k]))
            for other in sets
            for key in OUTSIDE.values()
        ]
        cost = line.cells[0].cost
        texts += [f"{cost['trained']:,.0f}", f"{cost['stored']:,.0f}"]
        for kind in ("train_seconds", "predict_seconds"):
            texts.append(_ratio(line, base, kind))
        gap = None if base is None or line is base else compare(line, base, plan)
        if gap is None:
            texts.append("")
        else:
            mark = "" if gap.excludes_zero else " (n.s.)"
            texts.append(f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]{mark}")
        out.append("| " + " | ".join(texts) + " |")
    return "\n".join(out)


def _ties(line: Line, best: Line, plan: Plan) -> bool:
    if line is best:
        return True
    gap = compare(line, best, plan)
    return gap is not None and not gap.excludes_zero


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean, and the standard error where there are several values."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text


def _ratio(line: Line, base: Line | None, kind: str) -> str:
    plain = {} if base is None else {c.key.seed: c.cost[kind] for c in base.cells}
    ratios = [c.cost[kind] / plain[c.key.seed] for c in line.cells if c.key.seed in plain]
    return f"{statistics.fmean(ratios):.1f}×" if ratios else "–"


def _losses(cell: Cell, plan: Plan) -> torch.Tensor:
    arrays = read_arrays(cell.key, plan.out)
    return metrics.nll(arrays["probs"], arrays["targets"], reduction="none")
