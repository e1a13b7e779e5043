"""The table of bench/compare.py's cells: means and standard errors over seeds, paired intervals.

python bench/table.py --cells docs/results/cells > table.md
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from compare import EPOCHS, ROWS

from bayestune import metrics

#: The row every other is compared with, on the same test items and seeds.
REFERENCE = "PoLAR-VBLL"
COLUMNS = ("accuracy", "ece", "nll", "brier", "aurc")
OUTSIDE = ("auroc_max_prob", "auroc_mutual_information", "auroc_density")


def read_cells(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return cells by task and row, seeds in order."""
    cells: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*/seed*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        cells[cell["task"]][cell["row"]].append(cell)
    return {
        task: {row: cells[task][row] for row in ROWS if row in cells[task]}
        for task in EPOCHS
        if task in cells
    }


def spread(values: list[float], digits: int = 3) -> str:
    """Return the mean, and the standard error where there are several values."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text


def difference(row: list[dict[str, Any]], reference: list[dict[str, Any]]) -> str:
    """Return the mean paired difference in NLL to the reference with its 95 % interval.

    Items are resampled. Where the seeds share the test items, an item's difference is averaged
    over them; where a seed dropped items that it trains on, each seed is resampled on its own.
    """
    seeds = {c["seed"]: c for c in reference}
    gaps = [
        torch.tensor(c["losses"]).double() - torch.tensor(seeds[c["seed"]]["losses"]).double()
        for c in row
        if c["seed"] in seeds
    ]
    if not gaps:
        return "–"
    if len({len(gap) for gap in gaps}) == 1:
        gaps = [torch.stack(gaps).mean(0)]
    found = metrics.bootstrap_interval(
        lambda *drawn: sum(float(d.mean()) for d in drawn) / len(drawn), *gaps, together=False
    )
    mark = "" if found.low > 0 or found.high < 0 else " (n.s.)"
    return f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{mark}"


def main() -> None:
    """Print one Markdown table per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("docs/results/cells"))
    arguments = parser.parse_args()
    for task, rows in read_cells(arguments.cells).items():
        some = next(iter(rows.values()))
        seeds = max(len(cells) for cells in rows.values())
        outside = next(iter(some[0]["ood"]))
        print(f"\n### {task}: {some[0]['n']} test rows, {seeds} seeds, outside rows: {outside}\n")
        print(
            "| | acc | ECE | NLL | Brier | AURC | OOD max-prob | OOD MI | OOD density "
            "| stable rank | NLL − PoLAR-VBLL [95 %] |"
        )
        print("|" + "---|" * 11)
        for name, cells in rows.items():
            numbers = [spread([c[key] for c in cells]) for key in COLUMNS]
            numbers += [spread([c["ood"][outside][key] for c in cells]) for key in OUTSIDE]
            numbers.append(spread([c["history"][-1]["stable_rank"] for c in cells], 2))
            versus = "" if name == REFERENCE else difference(cells, rows.get(REFERENCE, []))
            print(f"| {name} | {' | '.join(numbers)} | {versus} |")
        chosen = [(c["seed"], c["kl"], c["finalizer"]) for c in rows.get(REFERENCE, [])]
        for seed, kl, report in chosen:
            print(
                f"\nseed {seed}: κ {kl:g}, {report['covariance']} covariance at "
                f"{report['value']:g}, T {report['temperature']:.2f}"
            )


if __name__ == "__main__":
    main()
