"""What an update costs: new rows for a last layer, against its refit and against a training.

Three ways from the same trained model to one that knows N old and n new rows, timed in turn in one
run, medians of several:

    update     bt.update: one pass of the n new rows, the old posterior for their prior
    refit      one pass of all N + n rows, the finaliser of the recipe anew; the adapter as it is
    retrain    a training from the start on all N + n rows

The backbone is a small Llama with random weights (no download): times of passes are those of its
size, not of a real model, on which passes weigh more and the ratios grow with them.
The second table has no backbone: random features of K classes, update_head alone, by family.

    python bench/update.py [--old 600] [--new 100] [--repeats 5]
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import bayestune as bt
from bayestune.data import Task
from bayestune.finalize import Delivered, Features, update_head
from bayestune.head import GaussianHead
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training.rows import prepare

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_bases import save_llama
from toy_tasks import topic_rows

EPOCHS = 8
#: Families and the sizes (K, D) at which they are timed.
HEADS = (
    ("diagonal", 10, 576),
    ("low_rank", 10, 576),
    ("kronecker", 10, 576),
    ("eigen", 10, 576),
    ("dense", 10, 576),
    ("diagonal", 1000, 4096),
)


def median(run: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a few calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def build(base: Path, task: Task) -> BayesModel:
    """Return a fresh small model."""
    return bt.build(
        "polar_vbll", base=str(base), labels=task, rank=4, layers="top:2", kl=1.0, epochs=EPOCHS
    )


def refit(model: BayesModel, task: Task, val: Task) -> None:
    """Find the posterior anew from all rows, the adapter as it is."""
    reader = model.reader()
    rows, held_out = prepare(model, task), prepare(model, val)
    fit, chosen_by = (r.features(reader.features(r.encoded)) for r in (rows, held_out))
    model.method.finalize(copy.deepcopy(model.head), fit, chosen_by, model.recipe)


def verbs(old: int, new: int, repeats: int) -> None:
    """Print the first table."""
    both = Task.from_rows(topic_rows(old + new + 60))
    train, val = both.select(range(old)), both.select(range(old + new, old + new + 60))
    more, everything = both.select(range(old, old + new)), both.select(range(old + new))
    with tempfile.TemporaryDirectory() as folder:
        base = save_llama(Path(folder))
        model = build(base, train)
        bt.fit(model, train, val=val, progress=silent)
        head, notes = model.head, model.notes

        def update() -> None:
            model.set_head(copy.deepcopy(head))
            model.notes = notes
            bt.update(model, more)

        def retrain() -> None:
            bt.fit(build(base, train), everything, val=val, progress=silent)

        update()  # what is imported on first use is no part of any of them
        times = {"update": median(update, repeats)}
        times["refit"] = median(lambda: refit(model, everything, val), repeats)
        times["retrain"] = median(retrain, max(1, repeats // 2))
    print(f"{new} rows to {old}, {EPOCHS} epochs: seconds, and times an update")
    for name, seconds in times.items():
        print(f"{name:10s} {seconds:8.3f} {seconds / times['update']:8.1f}")


def once(head: GaussianHead, rows: Features, delivered: Delivered) -> None:
    """Update a copy of a head."""
    update_head(copy.deepcopy(head), rows, delivered)


def heads(new: int, repeats: int) -> None:
    """Print the second table."""
    print(f"update_head alone, {new} rows of random features: seconds")
    for covariance, K, D in HEADS:
        g = torch.Generator().manual_seed(0)
        rows = Features(torch.randn(new, D, generator=g), torch.randint(K, (new,), generator=g))
        head = GaussianHead(in_features=D, num_classes=K, covariance=covariance)  # pyright: ignore
        head.set_feature_energy(rows.phi)
        for kind in ("trained", "refreshed"):
            delivered = Delivered(kind, 1.0, 1.0, 1.0)
            run = functools.partial(once, head, rows, delivered)
            seconds = median(run, 1 if K > 100 else repeats)
            print(f"{covariance:10s} K={K:<5d} D={D:<5d} {kind:10s} {seconds:8.3f}", flush=True)


def main() -> None:
    """Time all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=int, default=600)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    verbs(arguments.old, arguments.new, arguments.repeats)
    heads(arguments.new, arguments.repeats)


if __name__ == "__main__":
    main()
