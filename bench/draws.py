"""S draws of an adapter in one pass against S passes, on the embedded model.

Texts stand S + 1 times behind one another in the layers that are adapted; frozen layers run once.
The loop predicts with the weights of one draw after the other. Interleaved repeats, medians.

    python bench/draws.py [--samples 10] [--texts 64] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from bayestune.data import Task
from bayestune.model import BayesModel, build
from bayestune.training.run import environment

WORDS = ["the", "parcel", "that", "I", "ordered", "last", "week", "has", "not", "arrived"]


def texts(count: int) -> Task:
    """Return texts of 3 to 40 words."""
    random = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        length = int(torch.randint(3, 41, (), generator=random))
        picks = torch.randint(len(WORDS), (length,), generator=random).tolist()
        rows.append({"text": " ".join(WORDS[j] for j in picks), "label": "ab"[i % 2]})
    return Task.from_rows(rows)


def looped(model: BayesModel, task: Task, samples: int, *, shared: bool) -> torch.Tensor:
    """Return logits ``(S, N, K)`` by one pass of the adapted layers (or of all) for each draw."""
    weights, reader = model.backbone.weights, model.reader()
    assert weights is not None
    encoded = model.encode(task)
    if shared:
        reader.cache = model.new_cache()
        reader.fill(encoded)
    found = []
    for s in range(samples):
        with torch.no_grad(), weights.drawing([s], 0, blocks=False):
            found.append(model.head(reader.features(encoded)))
    return torch.stack(found)


def at_once(model: BayesModel, task: Task, samples: int) -> torch.Tensor:
    """Return logits ``(S, N, K)`` with all draws in one pass."""
    encoded = model.encode(task)
    return model.reader().draws(encoded, model.head, range(samples), 0)[1]


def seconds(run: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Print ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    task = texts(given.texts)
    print("| adapted | one pass | S passes | S passes, shared prefix | ratio | limit |")
    print("|---|---|---|---|---|---|")
    for layers in ("top:25%", "all"):
        model = build("blob", labels=task, layers=layers, weights={"init_std": 0.2})
        runs: dict[str, Callable[[], torch.Tensor]] = {
            "once": lambda: at_once(model, task, given.samples),  # noqa: B023
            "loop": lambda: looped(model, task, given.samples, shared=False),  # noqa: B023
        }
        if layers != "all":
            runs["shared"] = lambda: looped(model, task, given.samples, shared=True)  # noqa: B023
        torch.testing.assert_close(runs["once"](), runs["loop"](), rtol=1e-3, atol=1e-3)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(given.repeats):
            for name, run in runs.items():
                times[name].append(seconds(run))
        median = {name: statistics.median(values) for name, values in times.items()}
        depth = len(model.backbone.layers)
        adapted = depth - model.backbone.first_layer
        limit = (depth - adapted + (1 + given.samples) * adapted) / (given.samples * depth)
        shared = f"{median['shared']:.2f} s" if "shared" in median else "–"
        columns = [f"{adapted} of {depth}", f"{median['once']:.2f} s", f"{median['loop']:.2f} s"]
        columns += [shared, f"{median['once'] / median['loop']:.2f}", f"{limit:.2f}"]
        print("| " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
