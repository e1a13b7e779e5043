"""Predictions with full uncertainty against the bare forward of the same backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench.speed.measure import Row, interleaved, medians, peak, ratio
from bench.speed.texts import tasks
from torch import Tensor

from bayestune.data import LabelSet, Task
from bayestune.metrics import fit_density
from bayestune.model import BayesModel, build

BATCH, CLASSES = 32, (2, 20, 150)


def run(device: str, base: str, repeats: int) -> list[Row]:
    """Measure one batch of texts of about one length, tokens given, by number of classes."""
    task = tasks(8 * BATCH)[0]
    by_length = sorted((e.text for e in task), key=len)
    texts = by_length[4 * BATCH : 5 * BATCH]
    models = {K: _model(K, texts, device, base) for K in CLASSES}
    model = models[CLASSES[0]]
    encoded, reader = model.encode(model.read(texts)), model.reader()
    rows = range(BATCH)
    tensors = reader.tensors(encoded, rows)
    last = tensors["attention_mask"].sum(1) - 1

    @torch.inference_mode()
    def bare() -> Tensor:
        states = model.backbone.transformer(**tensors, use_cache=False).last_hidden_state
        return states[torch.arange(BATCH), last]

    @torch.inference_mode()
    def pooled() -> Tensor:
        return reader.batch(encoded, rows)

    def ours(K: int) -> Callable[[], Any]:
        reader = models[K].reader()

        @torch.inference_mode()
        def predict() -> Any:
            return models[K].predict_features(reader.batch(encoded, rows).cpu())

        return predict

    torch.testing.assert_close(bare().float(), pooled(), rtol=1e-2, atol=1e-2)
    runs: dict[str, Callable[[], Any]] = {f"K = {K}": ours(K) for K in CLASSES}
    runs |= {"bare": bare, "pooled": pooled}
    times = interleaved(runs, repeats, device)
    detail = {"seconds": medians(times), "tokens": int(tensors["attention_mask"].sum())}
    held, bare_peak = peak(bare, device)
    found = []
    for K in CLASSES:
        name = f"prediction with uncertainty, batch {BATCH}, K = {K}"
        found += [
            _row(f"{name}, against the bare forward", ratio(times, f"K = {K}", "bare"), detail),
            _row(
                f"{name}, against our own pass, which skips what nobody reads",
                ratio(times, f"K = {K}", "pooled"),
                detail,
            ),
        ]
        _, most = peak(ours(K), device)
        memory = {"weights_mb": held, "bare_mb": bare_peak, "ours_mb": most}
        what = f"{name}: peak memory against the bare forward"
        found.append(Row(what, most / bare_peak, "×", "≤ 1.01", "1", memory))
    return found


def _row(what: str, value: float, detail: dict[str, Any]) -> Row:
    return Row(what, value, "×", "≤ 1.02", "the same pass", detail)


def _model(K: int, texts: list[str], device: str, base: str) -> BayesModel:
    """Return a model with what training would give it: all fields of its predictions."""
    names = tuple(f"class {k}" for k in range(K))
    task = Task("classification", (), LabelSet(names, names))
    model = build(base=base, labels=task, device=device)
    phi = torch.randn(4 * len(texts), model.head.in_features)  # pyright: ignore
    labels = torch.arange(len(phi)) % min(K, 4)
    model.density = fit_density(phi, labels, K).stored()
    return model
