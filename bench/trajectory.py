"""Calibration, and the rank of what was learnt, against training length and learning rate.

    bayestune bench trajectory --data DATA
    python bench/trajectory.py bench/trajectory

Reads the cells of the suite ``trajectory``, whose tasks are lengths and whose rows are a method at
one of four rates, and prints a table per quantity: methods and rates down, epochs across.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from bayestune.bench import Cell, read_plan
from bayestune.bench.table import Estimate, lines

QUANTITIES: dict[str, Callable[[Cell], float | None]] = {
    "test NLL": lambda cell: cell.metrics["nll"],
    "ECE": lambda cell: cell.metrics["ece"],
    "accuracy": lambda cell: cell.metrics["accuracy"],
    "OOD AUROC by max-prob": lambda cell: next(iter(cell.ood.values()))["auroc_max_prob"],
    "stable rank of ΔW": lambda cell: cell.history[-1]["stable_rank"] if cell.history else None,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    plan = read_plan(parser.parse_args().folder)
    found = {task: {line.row: line.cells for line in lines(plan, task)} for task in plan.tasks}
    lengths = [task.partition("-")[2] for task in plan.tasks]
    for title, read in QUANTITIES.items():
        print(
            f"\n### {title}\n\n| | rate | {' | '.join(lengths)} |\n|{'---|' * (2 + len(lengths))}"
        )
        for row in plan.rows:
            each = [found[task].get(row, ()) for task in plan.tasks]
            rates = {cell.key.lr for cells in each for cell in cells}
            values = [[v for cell in cells if (v := read(cell)) is not None] for cells in each]
            if any(values):
                texts = [Estimate.of(v).text() if v else "–" for v in values]
                print(f"| {row.rpartition('-')[0]} | {rates.pop():g} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
