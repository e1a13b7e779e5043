"""S draws of an adapter in one pass against S passes.

Texts stand S + 1 times behind one another in the layers that are adapted; frozen layers run once.
The loop predicts with the weights of one draw after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench.speed.measure import Row, interleaved, medians, ratio
from bench.speed.texts import tasks
from torch import Tensor

from bayestune.data import Task
from bayestune.model import BayesModel, build

SAMPLES, TEXTS = 10, 64


def run(device: str, base: str, repeats: int) -> list[Row]:
    """Measure with the top quarter and with all layers adapted."""
    task = tasks(TEXTS)[0]
    return [
        row for layers in ("top:25%", "all") for row in _rows(layers, task, device, base, repeats)
    ]


def _rows(layers: str, task: Task, device: str, base: str, repeats: int) -> list[Row]:
    model = build("blob", base, task, device=device, layers=layers, weights={"init_std": 0.2})
    runs: dict[str, Callable[[], Any]] = {
        "at once": lambda: at_once(model, task, SAMPLES),
        "loop": lambda: looped(model, task, SAMPLES, shared=False),
    }
    if layers != "all":
        runs["loop, prefix shared"] = lambda: looped(model, task, SAMPLES, shared=True)
    torch.testing.assert_close(runs["at once"](), runs["loop"](), rtol=1e-3, atol=1e-3)
    times = interleaved(runs, max(1, repeats // 2), device, warm=0)
    depth = len(model.backbone.layers)
    adapted = depth - model.backbone.first_layer
    limit = (depth - adapted + (1 + SAMPLES) * adapted) / (SAMPLES * depth)
    return [
        Row(
            f"{SAMPLES} draws, {adapted} of {depth} layers adapted, against {SAMPLES} passes",
            ratio(times, "at once", "loop"),
            "×",
            "≤ 0.5" if layers != "all" else "",
            f"{limit:.2f}: shared layers once, the others for each draw and the mean",
            {"seconds": medians(times)},
        )
    ]


def looped(model: BayesModel, task: Task, samples: int, *, shared: bool) -> Tensor:
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
            phi = reader.features(encoded).to(model.backbone.device)
            found.append(model.head(phi).cpu())
    return torch.stack(found)


def at_once(model: BayesModel, task: Task, samples: int) -> Tensor:
    """Return logits ``(S, N, K)`` with all draws in one pass."""
    encoded = model.encode(task)
    return model.reader().draws(encoded, model.head, range(samples), 0)[1]
