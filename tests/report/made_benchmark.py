"""Folders of benchmarks whose cells were made up: plausible predictions, no training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bayestune import metrics
from bayestune.bench import Key, Plan, Suite, read_suite, write_plan
from bayestune.bench.cell import Cell, arrays_of, write
from bayestune.evaluation import detection
from bayestune.posterior.predictive import Predictive
from bayestune.prediction import Prediction

#: Row → method, accuracy of its scores, how overconfident it is, how far its draws spread.
ROWS: Mapping[str, tuple[str, float, float, float]] = {
    "mle": ("mle", 1.0, 2.2, 0.0),
    "temperature": ("temperature", 1.0, 1.1, 0.0),
    "map": ("map", 1.0, 1.9, 0.0),
    "ensemble": ("ensemble", 1.1, 1.5, 0.6),
    "blob": ("blob", 1.0, 1.3, 0.8),
    "tfb": ("tfb", 1.0, 1.6, 0.5),
    "polar_mle": ("polar_mle", 1.05, 2.1, 0.0),
    "polar_vbll": ("polar_vbll", 1.15, 1.15, 0.7),
}
#: Task → classes, test rows, rows from elsewhere.
TASKS: Mapping[str, tuple[int, int, Mapping[str, int]]] = {
    "sentiment": (2, 240, {"questions": 120}),
    "questions": (6, 200, {"sentiment": 90, "numbers": 60}),
    "intents": (150, 300, {"out-of-scope": 100}),
    "hostile": (2, 60, {"<b>%&|$x_1</b>": 30}),
}
RATES = {
    "lora": [0.001, 0.002, 0.004],
    "contextual": [0.001, 0.002, 0.004],
    "polar": [0.004, 0.008, 0.016],
}
ENVIRONMENT = {"bayestune": "0.1.0", "torch": "2.13.0", "machine": "x86_64", "device": "cpu"}


def made_suite(
    rows: Mapping[str, Any] = ROWS, tasks: Collection[str] = tuple(TASKS)[:3], seeds: int = 3
) -> Suite:
    """A suite of these rows and tasks."""
    data = {
        "recipe": {"model": "tiny"},
        "rates": RATES,
        "seeds": seeds,
        "tasks": {
            task: {
                "train": f"{task}.jsonl",
                "test": f"{task}-test.jsonl",
                "val_rows": 50,
                "ood": {name: f"{name}.jsonl" for name in TASKS[task][2]},
            }
            for task in tasks
        },
        "rows": {
            row: {"method": made[0]}
            | ({"start": "mle"} if made[0] in ("temperature", "tfb") else {})
            for row, made in rows.items()
        },
    }
    return read_suite(data, "made up")


def make(
    out: Path,
    suite: Suite,
    rows: Mapping[str, tuple[str, float, float, float]] = ROWS,
    skip: Collection[Key] = (),
    fail: Collection[Key] = (),
) -> Plan:
    """Write a cell for every training of a suite but for those to skip; some broke off."""
    plan = Plan.of(suite, out, list(suite.tasks), list(suite.rows), suite.seeds)
    write_plan(plan)
    again = True
    while again:
        ready = [key for key in plan.todo()[0] if key not in skip]
        again = bool(ready)
        for key in ready:
            cell, arrays = _broken(suite, key) if key in fail else _made(suite, key, rows[key.row])
            write(cell, arrays, out)
    return plan


def _broken(suite: Suite, key: Key) -> tuple[Cell, dict[str, torch.Tensor]]:
    nothing: dict[str, Any] = {name: {} for name in ("metrics", "intervals", "ood", "cost")}
    cell = Cell(
        key, math.inf, **nothing, rows={}, chosen={}, history=[], environment=ENVIRONMENT,
        error="the loss of step 12 is not finite; lower train.lr.",
        **suite.asked(key.task, key.row, key.seed, key.lr),
    )  # fmt: skip
    return cell, {}


def _made(
    suite: Suite, key: Key, made: tuple[str, float, float, float]
) -> tuple[Cell, dict[str, torch.Tensor]]:
    classes, rows, sets = TASKS[key.task]
    place = list(suite.rows).index(key.row)
    rng = torch.Generator().manual_seed(1000 * key.seed + 10 * place + len(key.task))
    targets = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(classes))
    rates = suite.rates_of(key.task, key.row)
    off = abs(rates.index(key.lr) - 1) if isinstance(rates, tuple) else 0
    inside = _predict(targets, classes, made, 1 - 0.25 * off, rng)
    outside = {name: _predict(None, classes, made, n, rng) for name, n in sets.items()}
    confidence, correct = metrics.top_label(inside.probs, targets)
    measured = {
        "accuracy": float(correct.mean()),
        "nll": metrics.nll(inside.probs, targets),
        "ece": metrics.ece(inside.probs, targets),
        "brier": metrics.brier(inside.probs, targets),
        "aurc": metrics.aurc(confidence, correct),
    }
    other = {**measured, "auroc_mutual_information": 0.5 + 0.01 * place}
    shifted = {"exams": {k: 0.9 * v for k, v in other.items()}} if key.task == "questions" else {}
    starts = suite.rows[key.row].start is not None
    seconds = 30 + 20 * place + 3 * key.seed
    cell = Cell(
        key=key,
        val_nll=measured["nll"] + 0.01,
        metrics=measured,
        intervals={},
        ood={name: detection(inside, other) for name, other in outside.items()},
        cost={
            "train_seconds": float(seconds),
            "predict_seconds": 0.5 + 0.3 * place,
            "predict_rows": 64,
            "trained": 16512.0 + 100 * place,
            "stored": 17.0 * place,
        },
        rows={
            **{"train": 640, "val": 50, "test": rows, "dropped": {"train": 3}},
            **{"ood": dict(sets), "shifted": dict.fromkeys(shifted, 40)},
        },
        shifted=shifted,
        chosen={"best_epoch": 4, "kl": 0.1, "temperature": 1.25},
        history=[] if starts else _history(measured, key.row == "ensemble"),
        environment=ENVIRONMENT,
        **suite.asked(key.task, key.row, key.seed, key.lr),
    )
    labels = torch.randint(classes, (50,), generator=rng)
    held_out = _predict(labels, classes, made, 1 - 0.25 * off, rng)
    arrays = arrays_of(inside, targets, outside)
    return cell, arrays | {"val.probs": held_out.probs, "val.targets": labels}


def _predict(
    targets: torch.Tensor | None,
    classes: int,
    made: tuple[str, float, float, float],
    strength: float,
    rng: torch.Generator,
) -> Prediction:
    _, skill, sharp, width = made
    rows = int(strength) if targets is None else len(targets)
    scores = torch.randn(rows, classes, generator=rng)
    if targets is not None:
        hard = torch.rand(rows, 1, generator=rng) * 3.2
        signal = torch.nn.functional.one_hot(targets, classes) * hard
        scores = scores * 0.7 + signal * skill * strength * (1 + 0.25 * math.log(classes))
    draws = 0 if width == 0 else 8
    noise = torch.randn(max(1, draws), rows, classes, generator=rng) * width
    if targets is None:
        noise = noise * 1.6
    predictive = Predictive.from_samples(sharp * scores[None] + noise * bool(draws))
    distance = torch.rand(rows, generator=rng) * 40 + (60 if targets is None else 30)
    found = Prediction.of(predictive, [str(k) for k in range(classes)], distance)
    if draws:
        return found
    return replace(found, aleatoric=found.entropy, epistemic=torch.zeros(rows))


def _history(measured: Mapping[str, float], ensemble: bool) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            **({"member": member} if member else {}),
            "train_nll": measured["nll"] * (0.3 + 1.5 / epoch),
            "val_nll": measured["nll"] * (1 + 0.6 / epoch + 0.02 * epoch) + 0.05 * member,
            "val_accuracy": measured["accuracy"] * (1 - 0.4 / epoch),
            "stable_rank": 1 + epoch / 4,
        }
        for member in (range(3) if ensemble else [0])
        for epoch in range(1, 7)
    ]
