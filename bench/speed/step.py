"""A training step against PEFT's LoRA with a linear head, on identical batches and targets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench.speed.measure import Row, interleaved, medians, ratio, synchronise
from bench.speed.texts import tasks
from torch import nn

from bayestune.backbone import resolve
from bayestune.data import length_grouped_batches
from bayestune.model import BayesModel, build
from bayestune.progress import silent
from bayestune.training.loop import Loop
from bayestune.training.rows import start
from bayestune.training.run import Journal
from bayestune.training.session import Session

BATCH, STEPS = 16, 3


def run(device: str, base: str, repeats: int) -> list[Row]:
    """Measure steps with the top quarter and with all layers adapted, nothing cached."""
    return [row for layers in ("top:25%", "all") for row in compared(layers, device, base, repeats)]


def compared(layers: str, device: str, base: str, repeats: int, **adapter: Any) -> list[Row]:
    """Measure some steps of ours and of PEFT's LoRA."""
    task = tasks(BATCH * STEPS)[0]
    model = build(base=base, labels=task, device=device, adapter={"layers": layers, **adapter})
    loop = loop_of(model, task)
    batches = length_grouped_batches(loop.rows.encoded.lengths, BATCH, seed=0, epoch=0)
    lora = Lora(model, loop)
    spent: list[float] = []
    loop.adapter.step = _watched(loop.adapter.step, spent, device)  # pyright: ignore

    def ours() -> None:
        for batch in batches:
            loop.run_step(batch)

    def theirs() -> None:
        for batch in batches:
            lora.step(batch)

    times = interleaved({"ours": ours, "lora": theirs}, repeats, device)
    # The watch counts the round that warms up, too.
    share = sum(spent[STEPS:]) / sum(times["ours"])
    where = "all layers" if layers == "all" else "the top quarter of the layers"
    detail = {"seconds": medians(times), "trained": lora.sites}
    return [
        Row(
            f"training step, {where} adapted, against PEFT's LoRA and a linear head",
            ratio(times, "ours", "lora"),
            "×",
            "≤ 1.05",
            "both passes of the backbone; below 1 only by the skipped part of the last layer",
            detail,
        ),
        Row(
            f"adapter's update (Stiefel), share of such a step, {where} adapted",
            share,
            "",
            "",
            "products of (n, r) and (r, r) matrices",
            detail,
        ),
    ]


def loop_of(model: BayesModel, task: Any) -> Loop:
    """Return a training at its first step, without a cache."""
    model.recipe = replace(model.recipe, cache=replace(model.recipe.cache, prefix="off"))
    session = Session(model, task, None, Journal(None), silent)
    phi = session.features(session.rows)
    start(model.head, session.rows, phi, range(len(phi)))
    loop = session.new_loop(1.0)
    model.backbone.train(True)
    return loop


def _watched(step: Callable[[], Any], spent: list[float], device: str) -> Callable[[], Any]:
    def timed() -> Any:
        synchronise(device)
        started = time.perf_counter()
        found = step()
        synchronise(device)
        spent.append(time.perf_counter() - started)
        return found

    return timed


class Lora:
    """PEFT's LoRA at the sites of a model's adapter, with a linear head, AdamW and clipping."""

    def __init__(self, model: BayesModel, loop: Loop) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer
        from transformers import AutoModel

        names = model.backbone.transformer.named_modules()
        sites = [name for name, module in names if isinstance(module, BaseTunerLayer)]
        base = AutoModel.from_pretrained(
            resolve(model.source.name).path, dtype=model.backbone.dtype
        )
        config = LoraConfig(
            r=model.recipe.adapter.rank, lora_alpha=model.recipe.adapter.alpha, target_modules=sites
        )
        self.sites = len(sites)
        self.model = get_peft_model(base.to(model.backbone.device), config)
        self.head = nn.Linear(base.config.hidden_size, len(model.labels)).to(model.backbone.device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = [*trained, *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.reader, self.rows = model.reader(), loop.rows

    def step(self, batch: list[int]) -> None:
        """Take one step."""
        tensors = self.reader.tensors(self.rows.encoded, batch)
        last = tensors["attention_mask"].sum(1) - 1
        states = self.model(**tensors, use_cache=False).last_hidden_state
        logits = self.head(states[torch.arange(len(batch)), last].float())
        labels = self.rows.labels[batch].to(logits.device)
        nn.functional.cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
