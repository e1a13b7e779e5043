"""All methods on SST-2 and TREC at equal tuning effort: accuracy, calibration, cost.

Every method that trains tries the same number of learning rates on seed 0 and keeps the one whose
delivered held-out NLL is lowest; what is done to a trained LoRA (temperature, Laplace, TFB,
ensembles) takes LoRA's. Each cell is written as it finishes and skipped when it is there.

    python bench/methods.py --data DATA --out docs/results/methods [--tasks sst2,trec]
        [--methods mle,blob,...] [--seeds 3]
    python bench/methods.py --out docs/results/methods --table
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from compare import EPOCHS, SETTINGS, TRIALS, Splits, load_splits
from table import spread

from bayestune import methods
from bayestune.backbone import PrefixCache
from bayestune.config import merge
from bayestune.data import Task
from bayestune.evaluation import evaluate
from bayestune.files import write_json
from bayestune.finalize import item_nll
from bayestune.model import BayesModel, build
from bayestune.progress import shown
from bayestune.training import fit
from bayestune.training.run import environment

LORA, POLAR = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3), (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
#: Rows: the method, what is changed of its defaults, and its rates or the row whose rate it takes.
ROWS: dict[str, tuple[str, dict[str, Any], tuple[float, ...] | str]] = {
    "mle": ("mle", {}, LORA),
    "mle, last epoch": ("mle", {"train": {"keep": "last"}}, "mle"),
    "mle, smoothed": (
        "mle",
        {"train": {"label_smoothing": 0.05, "entropy_bonus": 0.05}},
        "mle",
    ),
    "temperature": ("temperature", {}, "mle"),
    "last_layer_laplace": ("last_layer_laplace", {}, "mle"),
    "laplace_lora": ("laplace_lora", {}, "mle"),
    "tfb": ("tfb", {}, "mle"),
    "ensemble": ("ensemble", {}, "mle"),
    "map": ("map", {}, LORA),
    "mc_dropout": ("mc_dropout", {}, LORA),
    "blob": ("blob", {}, LORA),
    "blob, mean": ("blob", {"predict": {"samples": 0}}, "blob"),
    "scalabl": ("scalabl", {}, LORA),
    "bayesian_lora": ("bayesian_lora", {}, (1e-3, *POLAR[:4])),
    "c_lora": ("c_lora", {}, LORA),
    "swag": ("swag", {}, LORA),
    "ivon": ("ivon", {}, LORA),
    "lora_vbll": ("lora_vbll", {}, LORA),
    "polar_mle": ("polar_mle", {}, POLAR),
    "polar_laplace": ("polar_laplace", {}, "polar_mle"),
    "polar_blob": ("polar_blob", {}, POLAR),
    "polar_vbll": ("polar_vbll", {}, POLAR),
}
#: Frozen states by task and seed.
CACHES: dict[tuple[str, int], PrefixCache | None] = {}


def train(row: str, splits: Splits, task: str, seed: int, lr: float) -> tuple[BayesModel, float]:
    """Fit one row; return the finished model and the seconds of all that follows the cache."""
    method, changes, _ = ROWS[row]
    settings = merge(SETTINGS, {"train": {"epochs": EPOCHS[task], "lr": lr}}, changes)
    model = build(method, base="smollm2-135m", labels=splits.train, config=settings, seed=seed)
    model.cache = CACHES.get((task, seed)) or model.new_cache()
    CACHES[task, seed] = model.cache
    for rows in (splits.train, splits.val):
        model.reader().fill(model.encode(rows), progress=shown)
    started = time.monotonic()
    fit(model, splits.train, val=splits.val, progress=shown)
    return model, time.monotonic() - started


def held_out(model: BayesModel, val: Task) -> float:
    """Return the mean NLL of held-out rows under what is delivered."""
    probs = model.predict(val).probs  # pyright: ignore[reportAttributeAccessIssue]
    return float(item_nll(probs, torch.tensor(val.targets)).mean())


def predict_seconds(model: BayesModel, texts: Task) -> float:
    """Return the median seconds of predicting some texts from nothing."""
    model.cache, cache = None, model.cache
    times = []
    for _ in range(3):
        started = time.monotonic()
        model.predict(texts)
        times.append(time.monotonic() - started)
    model.cache = cache
    return statistics.median(times)


def measure(model: BayesModel, splits: Splits, seconds: float) -> dict[str, Any]:
    """Return the metrics of a finished model on the test set, and what it costs."""
    found = evaluate(model, splits.test, ood=splits.ood, progress=shown)
    targets = torch.tensor(splits.test.targets)
    some = splits.test.select(range(128))
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    own = {id(p) for p in model.head.parameters()}
    extra = 0 if model.backbone.weights is None else model.backbone.weights.tensors().values()
    return {
        **found.to_json(),
        "losses": [round(x, 6) for x in item_nll(found.prediction.probs, targets).tolist()],  # pyright: ignore
        "correct": (found.prediction.indices == targets).int().tolist(),  # pyright: ignore
        "adapter_parameters": sum(p.numel() for p in trained if id(p) not in own),
        "distribution_numbers": sum(t.numel() for t in extra) if extra else 0,
        "train_seconds": seconds,
        "predict_seconds": predict_seconds(model, some),
        "predict_rows": len(some),
        "chosen": model.notes["chosen"],
        "environment": environment(),
    }


def chosen_rate(out: Path, data: Path, task: str, row: str) -> float:
    """Return the learning rate of a row, trying each once on seed 0."""
    rates = ROWS[row][2]
    if isinstance(rates, str):
        return chosen_rate(out, data, task, rates)
    tried: dict[float, float] = {}
    for lr in rates[: TRIALS[task]]:
        file = out / task / f"lr-{_slug(row)}-{lr:g}.json"
        if not file.is_file():
            splits = load_splits(data, task, 0)
            model, seconds = train(row, splits, task, 0, lr)
            write_json(file, {"lr": lr, "val_nll": held_out(model, splits.val), "seconds": seconds})
            del model
            gc.collect()
        tried[lr] = json.loads(file.read_text(encoding="utf-8"))["val_nll"]
    best = min(tried, key=tried.__getitem__)
    print(f"{task} {row}: {tried} -> {best:g}", flush=True)
    return best


def run(out: Path, data: Path, task: str, row: str, seed: int) -> None:
    """Write one cell, unless it is there."""
    file = out / task / f"seed{seed}-{_slug(row)}.json"
    if file.is_file():
        return
    lr = chosen_rate(out, data, task, row)
    splits = load_splits(data, task, seed)
    model, seconds = train(row, splits, task, seed, lr)
    cell = measure(model, splits, seconds)
    write_json(file, {"row": row, "task": task, "seed": seed, "lr": lr, **cell})
    print(
        f"{task} seed {seed} {row}: acc {cell['accuracy']:.4f} nll {cell['nll']:.4f} "
        f"ece {cell['ece']:.4f} {seconds:.0f} s",
        flush=True,
    )


def table(out: Path) -> str:
    """Return the cells as Markdown, times relative to the ``mle`` of the same seed."""
    lines: list[str] = []
    for task in EPOCHS:
        files = sorted((out / task).glob("seed*.json"))
        cells = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not cells:
            continue
        plain = {c["seed"]: c for c in cells if c["row"] == "mle"}
        names = [
            "acc",
            "NLL",
            "ECE",
            "Brier",
            "OOD-max-prob",
            "OOD-MI",
            "parameters",
            "train",
            "predict",
        ]
        lines += [f"### {task}: {cells[0]['n']} test rows", ""]
        lines += ["| | seeds | " + " | ".join(n.replace("-", " ") for n in names) + " |"]
        lines += ["|---" * (len(names) + 2) + "|"]
        for row in ROWS:
            mine = [c for c in cells if c["row"] == row]
            if not mine:
                continue
            outside = [next(iter(c["ood"].values())) for c in mine]
            texts = [spread([c[k] for c in mine]) for k in ("accuracy", "nll", "ece", "brier")]
            texts += [spread([o[f"auroc_{k}"] for o in outside]) for k in OUTSIDE]
            texts += [f"{mine[0]['adapter_parameters'] + mine[0]['distribution_numbers']:,}"]
            for kind in ("train_seconds", "predict_seconds"):
                ratios = [c[kind] / plain[c["seed"]][kind] for c in mine if c["seed"] in plain]
                texts += [f"{statistics.fmean(ratios):.1f}×" if ratios else "–"]
            lines += [f"| {row} | {len(mine)} | " + " | ".join(texts) + " |"]
        lines += [""]
    return "\n".join(lines)


OUTSIDE = ("max_prob", "mutual_information")


def _slug(row: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in row).strip("_")


def main() -> None:
    """Run all cells that are not there yet, or print the table of those that are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods"))
    parser.add_argument("--tasks", default="sst2,trec")
    parser.add_argument("--methods", default=";".join(ROWS), help="rows, between semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out))
        return
    torch.set_num_threads(1)
    for seed in range(arguments.seeds):
        for task in arguments.tasks.split(","):
            for row in arguments.methods.split(";"):
                assert ROWS[row][0] in methods.METHODS
                run(arguments.out, arguments.data, task, row, seed)


if __name__ == "__main__":
    main()
