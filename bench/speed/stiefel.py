"""The Stiefel update against the landing form with n × n matrices and against QR."""

from __future__ import annotations

import random

import torch
from bench.speed.measure import Row, medians, ratio
from bench.stiefel import Variant, draw

from bayestune.geometry import random_point

SHAPES = ((4096, 16), (11008, 16), (14336, 64))
#: Factors of a step: all of a 7B model on a GPU, as many as an n × n matrix leaves time for here.
COUNT = {"cpu": 2, "cuda": 224}
NAMES = {"landing, n × n": 10, "QR, Householder": 3}


def run(device: str, base: str, repeats: int) -> list[Row]:
    """Measure whole optimiser steps over the same factors and gradients."""
    return [row for shape in SHAPES for row in _rows(*shape, device, repeats)]


def _rows(n: int, r: int, device: str, repeats: int) -> list[Row]:
    generator, rng, count = torch.Generator().manual_seed(0), random.Random(0), COUNT[device]
    points = [random_point(n, r, generator=generator).to(device) for _ in range(count)]
    variants = {name: Variant(name, points, 2e-3) for name in ("polar (ours)", *NAMES)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        gradients = draw(n, r, count, generator, device)
        for name in rng.sample(list(variants), len(variants)):
            seconds = variants[name].step(gradients)
            if repeat:
                times[name].append(seconds)
    return [
        Row(
            f"Stiefel update of {count} factors ({n}, {r}), faster than {name} by",
            ratio(times, name, "polar (ours)"),
            "×",
            f"≥ {bound}" if device == "cuda" else "≥ 1",
            "products of (n, r) with (r, r), a few of them",
            {"seconds": medians(times)},
        )
        for name, bound in NAMES.items()
    ]
