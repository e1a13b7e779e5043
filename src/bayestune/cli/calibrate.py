"""``bayestune calibrate``: what a run can promise, by rows that it has not seen."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayestune.cli.console import emit, log, quiet, to_json
from bayestune.cli.options import Base, BatchSize, Debug, Device, Dtype, RunFolder, Samples

if TYPE_CHECKING:
    from bayestune.guarantees import AbstainRule, Guarantees, SetRule


def calibrate(
    ctx: typer.Context,
    run: RunFolder,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Labelled rows that the run has not seen: .jsonl, .csv, .parquet or hf:NAME.",
        ),
    ],
    coverage: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sets hold the true class with this probability."),
    ] = None,
    max_risk: Annotated[
        float | None,
        typer.Option(metavar="R", help="Answer where the error among answers is at most this."),
    ] = None,
    sets: Annotated[
        str, typer.Option(metavar="KIND", help="lac (small), aps (fair to hard rows) or raps.")
    ] = "lac",
    by: Annotated[
        str,
        typer.Option(
            metavar="SCORE",
            help="What decides on an answer: max_prob, entropy, mutual_information or density.",
        ),
    ] = "max_prob",
    confidence: Annotated[
        float, typer.Option(metavar="P", help="With which --max-risk is kept.")
    ] = 0.95,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Read the first N rows.")
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    samples: Samples = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Guarantee prediction sets (--coverage), abstention (--max-risk) or both.

    What is found is stored with the model, in the place of what was: predict then adds "set" and
    "abstain" to its rows, and eval measures them. It holds for rows that are exchangeable with
    those of --data.
    """
    with quiet(ctx):
        from bayestune import calibration, store
        from bayestune.data import Task
        from bayestune.progress import shown

        wanted = calibration.Wanted(coverage, max_risk, sets, by, confidence)
        log.info("loading %s", run)
        model = store.load(run, base=base, device=device, dtype=dtype, samples=samples)
        rows = Task.load(data, like=model.task, limit=limit)
        found = calibration.calibrate(
            model, rows, **asdict(wanted), batch_size=batch_size, progress=shown
        )
        file = store.save_guarantees(model, run)
    emit(to_json(_report(found)) if as_json else "\n".join(_sentences(found, len(rows), file)))


def _report(found: Guarantees) -> dict[str, Any]:
    """Return what was found with what follows from it."""
    report = found.to_json()
    if found.abstain is not None:
        report["abstain"] |= {"bounds": list(found.abstain.bounds), "chosen": found.abstain.chosen}
    return report


def _sentences(found: Guarantees, rows: int, file: Path) -> list[str]:
    lines = [f"{rows} calibration rows"]
    lines += [] if found.sets is None else [_sets(found.sets)]
    lines += [] if found.abstain is None else _abstention(found.abstain)
    return [*lines, f"saved in {file}"]


def _sets(rule: SetRule) -> str:
    return (
        f"sets: {rule.kind}, score at most {rule.threshold:.4g}: they hold the true class with "
        f"probability {rule.coverage:g} or more, and {rule.size:.2f} classes on these rows"
    )


def _abstention(rule: AbstainRule) -> list[str]:
    i = rule.chosen
    if i is not None:
        return [
            f"abstention: unless {_condition(rule)}; the error among answers is at most "
            f"{rule.max_risk:g} with confidence {rule.confidence:g}",
            f"on these rows: {_facts(rule, i)}; bound {_up(rule.bounds[i])}",
        ]
    least = rule.attainable
    attainable = "these rows are too few for any"
    if least is not None and (at := rule.at(least)) is not None:
        attainable = f"the least that they show is {_up(least)}, with {_facts(rule, at)}"
    fewest = math.ceil(math.log(1 - rule.confidence) / math.log1p(-rule.max_risk))
    return [
        f"abstention: ALL ROWS. No threshold on {rule.by} is shown to keep the error among answers "
        f"at {rule.max_risk:g} with confidence {rule.confidence:g}",
        f"it takes {fewest} answered rows without an error, or more with some; {attainable}",
    ]


def _condition(rule: AbstainRule) -> str:
    """Return which rows are answered; the confidence is the higher, the better."""
    if rule.by == "max_prob":
        return f"confidence > {-rule.threshold:.6g}"
    return f"{rule.by} < {rule.threshold:.6g}"


def _facts(rule: AbstainRule, i: int) -> str:
    accepted, errors = rule.accepted[i], rule.errors[i]
    return (
        f"{accepted} of {rule.n} ({accepted / rule.n:.1%}) answered, {errors} of them wrong "
        f"({errors / max(accepted, 1):.2%})"
    )


def _up(bound: float) -> str:
    """Return a bound in four digits that are not less."""
    return f"{min(bound + 5e-5, 1):.4f}"
