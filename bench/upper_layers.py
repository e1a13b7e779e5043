"""What one pass of the adapted layers costs with and without its short cuts, on the embedded model.

`tail`: behind the last attention only the pooled tokens are run. `products`: attention is trained
through by plain products, where the fused kernel's backward pass is slow (short texts, half
precision, CPU). CPU seconds, interleaved repeats, medians; prefix cached, 16 texts a batch.

    python bench/upper_layers.py [--layers top:6] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch
from speed.texts import tasks

import bayestune.backbone.backbone as module
from bayestune.data import Encoded, length_grouped_batches
from bayestune.model import BayesModel, build
from bayestune.training.run import environment


def passes(model: BayesModel, encoded: Encoded, train: bool) -> float:
    """Return the CPU seconds of one pass over all texts."""
    reader = model.reader()
    started = time.process_time()
    for rows in length_grouped_batches(encoded.lengths, 16, shuffle=False):
        with torch.set_grad_enabled(train):
            features = reader.batch(encoded, rows)
            if train:
                features.square().mean().backward()
                model.backbone.zero_grad()
    return time.process_time() - started


def main() -> None:
    """Print the seconds of each, and the ratio to neither."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="top:6")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = tasks(256)[0]
    model = build(
        "polar_vbll",
        base="smollm2-135m",
        labels=task.labels,
        layers=arguments.layers,
        dtype="bfloat16",
    )
    encoded = model.encode(task)
    model.cache = model.new_cache()
    model.reader().fill(encoded)
    passes(model, encoded, train=True)
    times: dict[tuple[bool, bool, bool], list[float]] = {}
    for _ in range(arguments.repeats):
        for train in (True, False):
            for tail in (False, True):
                for products in (False, True) if train else (False,):
                    model.backbone._tail = tail
                    with mock.patch.object(module, "_SHORT", 128 if products else 0):
                        seconds = passes(model, encoded, train)
                    times.setdefault((train, tail, products), []).append(seconds)
    print(environment())
    for train in (True, False):
        plain = statistics.median(times[train, False, False])
        for (of, tail, products), each in times.items():
            if of == train:
                median = statistics.median(each)
                names = [n for n, on in (("tail", tail), ("products", products)) if on]
                what = " + ".join(names) or "neither"
                kind = "training" if train else "features"
                print(f"{kind:8}  {what:15}  {median:6.2f} s  {median / plain:.2f}")


if __name__ == "__main__":
    main()
