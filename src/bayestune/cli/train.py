"""``bayestune train``: from rows to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayestune.cli.console import emit, emit_table, log, quiet
from bayestune.cli.launch import is_worker, relaunch, require_engine, together
from bayestune.cli.options import Debug, debugging
from bayestune.cli.recipe import layers, resolved
from bayestune.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from bayestune.data import Task
    from bayestune.model import BayesModel
    from bayestune.training import Run


def train(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Labelled rows: .jsonl, .csv, .parquet or hf:NAME[/CONFIG][:SPLIT].",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Recipe keys, such as adapter.rank=16 or epochs=3."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run's folder; not needed with --dry-run."),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labelled rows to choose by; else a slice of --data."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="Hub id, folder, .gguf file or smollm2-135m (the default)."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="polar_vbll (the default), mle, …: see `bayestune methods`."
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="A YAML file or a name from `bayestune config ls`."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Default 0.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the frozen weights: auto, float32, bfloat16 or float16."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Read the first N rows of --data only."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The text; default: text.")
    ] = None,
    text2: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A second text, for pairs.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The label (or answer); default: label (answer)."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="classification, choice or regression; default: by the columns."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from this trained run instead of training (tfb, laplace_lora, …).",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also log to tensorboard, trackio, wandb or mlflow; may be repeated.",
        ),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(metavar="ENGINE", help="Train with several processes: ddp or fsdp2."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "-n", "--processes", metavar="N", min=1, help="With --launch; default: one per GPU."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print parameters, memory and time; write nothing."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model: adapter and posterior, with what is held out choosing the rest.

    The recipe is laid in this order, later ones winning: the method's defaults, --config, flags,
    KEY=VALUE.
    """
    flags = {"model": model, "method": method, "seed": seed, "device": device, "dtype": dtype}
    merged = layers(config, flags, overrides or (), start)
    if out is None and not dry_run:
        raise ConfigError("train needs --out, the run's folder (or --dry-run).")
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them.")
    if start is not None and (dry_run or resume):
        raise ConfigError("--from has no training to estimate or to resume.")
    if out is not None and not (dry_run or resume or overwrite):
        _check_free(out)
    trackers = _trackers(track or ())
    if launch is None and processes is not None:
        raise ConfigError("-n is the number of processes of --launch: give both.")
    if launch is not None:
        require_engine(launch)
        if dry_run:
            raise ConfigError("--dry-run estimates one process: give it without --launch.")
        if processes != 1 and not is_worker():
            relaunch(processes, debug=debugging(ctx))
            return
    asked = {"kind": task, "text": text, "text2": text2, "label": label, "answer": label}
    columns = {k: v for k, v in asked.items() if v is not None}
    if dry_run or out is None:  # without --out only --dry-run came this far
        _estimate(ctx, *_built(ctx, merged, data, val, limit, columns))
        return
    with together() as first:
        built, rows, held_out = _built(ctx, merged, data, val, limit, columns)
        how = {"resume": resume, "overwrite": overwrite}
        with quiet(ctx):
            if launch == "fsdp2":
                from bayestune.backbone import shard

                shard(built.backbone)
            run = _fit(built, rows, held_out, out, start, trackers, **how)
        if first:
            _show(run)


def _built(
    ctx: typer.Context,
    merged: Mapping[str, Any],
    data: str,
    val: str | None,
    limit: int | None,
    columns: dict[str, Any],
) -> tuple[BayesModel, Task, Task | None]:
    """Return the model of a recipe, its training and its held-out rows."""
    rows, held_out = _read(data, val, limit, columns)
    with quiet(ctx):
        from bayestune.model import assemble

        recipe = resolved(merged)
        log.info("loading %s", recipe.model)
        return assemble(recipe, rows), rows, held_out


def _read(
    data: str, val: str | None, limit: int | None, asked: dict[str, Any]
) -> tuple[Task, Task | None]:
    from bayestune.data import Task

    rows = Task.load(data, limit=limit, **asked)
    if rows.kind == "regression":
        ends = min(rows.values), max(rows.values)
        log.info("%s: %d rows, numbers from %g to %g", data, len(rows), *ends)
    else:
        log.info("%s: %d rows, %d classes", data, len(rows), len(rows.labels))
    if val is None:
        return rows, None
    held_out = Task.load(val, like=rows)
    log.info("%s: %d rows", val, len(held_out))
    return rows, held_out


def _trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse early what training would refuse after the model is loaded."""
    if not names:
        return ()
    from bayestune.training import wanted

    return wanted(names)


def _check_free(out: Path) -> None:
    """Refuse early what training would refuse after the model is loaded."""
    if any((out / name).exists() for name in ("model", "checkpoint", "race")):
        raise StoreError(
            f"{out} already holds a run; give another folder, --resume to continue it or "
            "--overwrite to replace it."
        )


def _estimate(ctx: typer.Context, model: BayesModel, rows: Task, held_out: Task | None) -> None:
    from bayestune.cli.estimate import estimate

    with quiet(ctx):
        lines = estimate(model, rows, held_out).lines()
    emit("\n".join(lines))


def _fit(
    model: BayesModel,
    rows: Task,
    held_out: Task | None,
    out: Path,
    start: Path | None,
    trackers: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
) -> Run:
    from bayestune.progress import shown
    from bayestune.training import fit

    try:
        return fit(
            model,
            rows,
            val=held_out,
            out=out,
            start=start,
            resume=resume,
            overwrite=overwrite,
            track=trackers,
            progress=shown,
        )
    except KeyboardInterrupt as error:
        raise type(error)(_how_to_go_on(out)) from None


def _how_to_go_on(out: Path) -> str:
    if (out / "checkpoint").is_dir() or (out / "race").is_dir():
        return (
            f"interrupted; {out} holds the state that was reached: run the same command with "
            "--resume (and without --overwrite) to continue from it."
        )
    return (
        "interrupted before there was a state to keep; run the same command with --resume to "
        "start again."
    )


def _show(run: Run) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    absent = "val_accuracy" if "noise" in run.chosen else "val_rmse"
    columns = {name: key for name, key in _COLUMNS.items() if key != absent}
    if any("member" in row for row in run.history):
        columns = {"member": "member", **columns}
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("")
    kept_rows = _kept(run)
    for row in run.history:
        kept = row in kept_rows
        cells = [f"{row[k]:.4g}" if k in row else "" for k in columns.values()]
        table.add_row(*cells, "kept" if kept else "", style="bold" if kept else None)
    if run.history:
        emit_table(table)
    emit(f"chosen: {_choices(run.chosen)}")
    emit(f"{run.seconds:.0f} s; saved in {run.out}/model")


def _kept(run: Run) -> list[dict[str, Any]]:
    """Return the epoch that was kept, of an ensemble that of every member."""
    members: dict[int, list[dict[str, Any]]] = {}
    for row in run.history:
        members.setdefault(row.get("member", 0), []).append(row)
    if run.recipe.train.keep == "best" and all("val_nll" in row for row in run.history):
        return [min(rows, key=lambda row: row["val_nll"]) for rows in members.values()]
    return [rows[-1] for rows in members.values()]


def _choices(chosen: Mapping[str, Any]) -> str:
    """Name what was chosen; the numbers of every candidate are in bayestune.json."""
    words = [f"KL weight {chosen['kl']:.3g}"]
    match chosen.get("covariance"):
        case "trained" if chosen["value"] is None:
            words.append("the posterior as trained")
        case "trained":
            words.append(f"covariance as trained, its scale × {chosen['value']:.3g}")
        case "exact":
            words.append("the exact posterior of the classes")
        case "refreshed":
            words.append(f"covariance refreshed at precision {chosen['value']:.3g}")
        case "ascended":
            words.append(f"posterior refitted at KL weight {chosen['value']:.3g}")
    words += _numbers(chosen.get("weights", {}))
    if "noise" in chosen:
        noise = chosen["noise"]
        words.append(f"{noise['kind']} noise of deviation {noise['std']:.3g}")
        return ", ".join([*words, f"standard deviations × {chosen['temperature']:.3g}"])
    return ", ".join([*words, f"temperature {chosen['temperature']:.3g}"])


def _numbers(settled: Mapping[str, Any]) -> list[str]:
    """Name what became of the adapter's distribution, but for every value that was tried."""
    words = []
    for key, value in settled.items():
        name = key.replace("_", " ")
        if isinstance(value, int | float):
            words.append(f"{name} {value:.3g}")
        elif isinstance(value, Mapping) and key != "tried":
            words += [f"{name} ({part}) {number:.3g}" for part, number in value.items()]
    return words


_COLUMNS = {
    "epoch": "epoch",
    "train nll": "train_nll",
    "held-out nll": "val_nll",
    "accuracy": "val_accuracy",
    "RMSE": "val_rmse",
    "stable rank": "stable_rank",
    "orthogonality error": "orthogonality_error",
}
