"""Predictions of many texts against the bare forward on the same tokens, perfectly packed."""

from __future__ import annotations

import math

import torch
from bench.speed.measure import Row, interleaved, medians, ratio
from bench.speed.texts import tasks

from bayestune.model import build

TEXTS, BATCH = 256, 32


def run(device: str, base: str, repeats: int) -> list[Row]:
    """Measure from texts to predictions, tokenising included."""
    task = tasks(TEXTS)[0]
    model = build(base=base, labels=task, device=device)
    texts = [example.text for example in task]
    tokens = [token for ids in model.encode(task).ids for token in ids]
    length = math.ceil(len(tokens) / TEXTS)
    padded = tokens + tokens[: length * TEXTS - len(tokens)]
    packed = torch.tensor(padded, device=device).view(TEXTS, length)  # no padding: (N, T)

    @torch.inference_mode()
    def bare() -> None:
        for ids in packed.split(BATCH):
            model.backbone.transformer(input_ids=ids, use_cache=False)

    times = interleaved(
        {"bare": bare, "ours": lambda: model.predict(texts, BATCH)}, repeats, device
    )
    return [
        Row(
            "throughput of batch prediction, against the bare forward on the same tokens without "
            "any padding",
            ratio(times, "bare", "ours"),
            "×",
            "≥ 0.90",
            "1 and what of the last layer nobody reads; texts of a batch differ in length",
            {"seconds": medians(times), "texts": TEXTS, "tokens": len(tokens)},
        )
    ]
