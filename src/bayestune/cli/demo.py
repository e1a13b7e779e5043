"""``bayestune demo``: PoLAR-VBLL beside plain LoRA on the quick-start data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayestune.cli.console import emit, emit_table, quiet
from bayestune.cli.options import Debug

if TYPE_CHECKING:
    from bayestune.demo import Demo


def demo(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For runs, figures and results.json.")
    ] = Path("demo"),
    model: Annotated[
        str, typer.Option(metavar="M", help="Hub id, folder, .gguf file or smollm2-135m.")
    ] = "smollm2-135m",
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    data_to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Copy the quick-start data there and do nothing else."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Fine-tune, evaluate and draw both on the same data and seed; takes minutes on two cores."""
    if data_to is not None:
        from bayestune.data.quickstart import copy_quickstart

        for file in copy_quickstart(data_to):
            emit(str(file))
        return
    with quiet(ctx):
        from bayestune.demo import run_demo

        found = run_demo(out, base=model, seed=seed)
    emit_table(_table(found))
    for figure in found.figures:
        emit(str(figure))


def _table(found: Demo) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    columns = {
        "accuracy ↑": lambda e: e.accuracy,
        "NLL ↓": lambda e: e.nll,
        "ECE ↓": lambda e: e.ece,
        "Brier ↓": lambda e: e.brier,
        "AURC ↓": lambda e: e.aurc,
    }
    outside = {
        "AUROC max-prob ↑": "auroc_max_prob",
        "mutual inf. ↑": "auroc_mutual_information",
        "density ↑": "auroc_density",
        "FPR95 ↓": "fpr95",
    }
    for column in (*columns, *outside, "time"):
        table.add_column(column, justify="right")
    for name, evaluation in found.evaluations.items():
        numbers = [f"{read(evaluation):.3f}" for read in columns.values()]
        for values in evaluation.ood.values():
            numbers += [f"{values[key]:.3f}" for key in outside.values()]
        table.add_row(name, *numbers, f"{found.runs[name].seconds:.0f} s")
    return table
