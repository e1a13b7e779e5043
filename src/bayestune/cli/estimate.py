"""What a run would take, from the model itself and a few of its real steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bayestune.data import Encoded, Task, length_grouped_batches
from bayestune.model import BayesModel
from bayestune.training.choose import candidates, epochs_of, race_epochs
from bayestune.training.fit import split
from bayestune.training.loop import Loop
from bayestune.training.rows import prepare, start

#: Batches that are timed, after one that is not; fewer where they take longer than `PATIENCE`.
TIMED = 3
PATIENCE = 30.0  # seconds
#: Texts in a pass without gradients, as in training.
FORWARD = 32


@dataclass(frozen=True)
class Estimate:
    """Parameters, bytes and seconds of a run.

    Attributes:
        rows: training rows, held-out ones included.
        tokens: tokens of all rows and of the longest one.
        adapter: trained parameters of the adapter.
        head: trained parameters of the head.
        frozen: parameters that stay as they are.
        memory: bytes by what they hold.
        seconds: wall time by phase.
        steps: how many steps were timed.
        batch_size: rows of a step.
    """

    rows: int
    tokens: tuple[int, int]
    adapter: int
    head: int
    frozen: int
    memory: dict[str, float]
    seconds: dict[str, float]
    steps: int
    batch_size: int

    def lines(self) -> list[str]:
        """Return the estimate for people."""
        memory = ", ".join(f"{name} {_size(n)}" for name, n in self.memory.items())
        times = ", ".join(f"{name} {_duration(s)}" for name, s in self.seconds.items())
        mean = self.tokens[0] / max(1, self.rows)
        return [
            f"rows        {self.rows:,}; {mean:.0f} tokens on average, {self.tokens[1]} at most",
            f"parameters  {self.adapter + self.head:,} trained (adapter {self.adapter:,}, head "
            f"{self.head:,}), {self.frozen:,} frozen",
            f"memory      about {_size(sum(self.memory.values()))}: {memory}",
            f"time        about {_duration(sum(self.seconds.values()))}: {times}",
            f"measured    by {self.steps} training steps of up to {self.batch_size} rows on this "
            "machine, scaled by the padded tokens of all batches; what a method does once after "
            "training (a covariance, its choices) is not in it",
            "nothing was written",
        ]


@dataclass
class _Timing:
    """Seconds and padded tokens of what was run."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    tokens: int = 0
    steps: int = 0
    saved: float = 0.0  # bytes kept for the backward pass, per padded token

    def rate(self, part: str) -> float:
        return self.seconds[part] / max(1, self.tokens)


_PARTS = ("frozen", "forward", "step")


def estimate(model: BayesModel, train: Task, val: Task | None) -> Estimate:
    """Time a few training steps of a model and scale them to the whole run.

    Bytes kept for the backward pass are counted tensor by tensor; everything else follows from
    shapes and token counts. The model is changed by the steps and is of no further use.

    Args:
        model: as it was built.
        train: training examples.
        val: held-out examples; where absent, a share of ``train`` is taken.
    """
    recipe = model.recipe
    held_out = split(model, train, val)[1]  # refuses what the training would
    model.adopt(train)
    rows = prepare(model, train, recipe.train.class_weights)
    others = None if val is None else prepare(model, val).encoded
    model.cache = model.new_cache()
    reader = model.reader()
    some = rows.encoded.select(range(min(len(rows), recipe.train.batch_size)))
    # The first pass of all is slower than the others, and training measures the energy as well.
    start(model.head, rows, reader.features(some), range(len(some.ids)))
    loop = Loop(
        method=model.method,
        reader=reader,
        head=model.head,
        rows=rows,
        config=recipe.train,
        kappa=1.0,
        seed=recipe.seed,
        epochs=epochs_of(recipe.train, len(rows)),
    )
    timing = _time_steps(model, loop)
    size = recipe.train.batch_size
    share = 1 - recipe.train.hold_out if val is None and held_out is not None else 1.0
    batches = length_grouped_batches(rows.encoded.lengths, size, seed=recipe.seed)
    padded = [_padded(rows.encoded, batch) for batch in batches]
    epoch = share * sum(padded)
    held = _forward_tokens(others) if others else (1 - share) * _forward_tokens(rows.encoded)
    all_rows = _forward_tokens(rows.encoded) + (_forward_tokens(others) if others else 0)
    count = round(share * len(rows))
    epochs, tried = epochs_of(recipe.train, count), len(candidates(model))
    race = race_epochs(epochs) if tried > 1 else 0
    # Of epochs the last may be cut short, be it raced or not.
    steps = recipe.train.max_steps / math.ceil(count / size) or epochs
    raced = min(race, steps)
    runs = getattr(model.backbone.weights, "members", 1)  # of an ensemble, which races nothing
    step, forward = timing.rate("step"), timing.rate("forward")
    seconds = {
        "frozen layers": timing.rate("frozen") * all_rows,
        "choosing the KL weight": tried * raced * epoch * step,
        "training": runs * (steps - raced) * epoch * step,
        "held-out and final features": forward
        * ((tried * race + runs * (epochs - race) + 1) * held + epoch),
    }
    adapter, head, frozen = _parameters(model)
    return Estimate(
        rows=len(rows) + (len(others.ids) if others else 0),
        tokens=(
            sum(rows.encoded.lengths) + (sum(others.lengths) if others else 0),
            max(rows.encoded.lengths),
        ),
        adapter=sum(p.numel() for p in adapter),
        head=sum(p.numel() for p in head),
        frozen=sum(p.numel() for p in frozen),
        memory={
            "weights": _bytes(frozen),
            # a value, its gradient and Adam's two moments
            "adapter, head and optimiser": 4 * _bytes([*adapter, *head]),
            "prefix cache": _cache_bytes(model, [rows.encoded, *([others] if others else [])]),
            "activations": timing.saved * max(padded),
        },
        seconds={name: s for name, s in seconds.items() if s > 0},
        steps=timing.steps,
        batch_size=size,
    )


def _time_steps(model: BayesModel, loop: Loop) -> _Timing:
    timing, started = _Timing(), time.monotonic()
    for i, batch in enumerate(list(loop.batches())[: 1 + TIMED]):
        part = loop.rows.encoded.select(batch)
        part_seconds = {
            "frozen": _timed(model, lambda part=part: loop.reader.fill(part, FORWARD)),
            "forward": _timed(model, lambda part=part: loop.reader.features(part, FORWARD)),
        }
        loop.reader.backbone.train(True)
        kept = _Kept()
        with saved_tensors_hooks(kept.note, lambda tensor: tensor):
            part_seconds["step"] = _timed(model, lambda batch=batch: loop.run_step(batch))
        loop.reader.backbone.train(False)
        tokens = _padded(loop.rows.encoded, batch)
        known = {p.untyped_storage().data_ptr() for p in _tensors(model)}
        timing.saved = max(timing.saved, kept.bytes(known) / tokens)
        if i == 0:
            first = part_seconds
            first_tokens = tokens
            continue
        timing.tokens += tokens
        timing.steps += 1
        for name, value in part_seconds.items():
            timing.seconds[name] += value
        if time.monotonic() - started > PATIENCE:
            break
    if timing.steps == 0:  # a single batch: what warmed up is all there is
        timing.seconds, timing.tokens, timing.steps = first, first_tokens, 1  # pyright: ignore
    return timing


class _Kept:
    """Storages kept for the backward pass, each counted once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def bytes(self, known: set[int]) -> int:
        """Return their bytes without those of parameters and buffers."""
        return sum(size for place, size in self._sizes.items() if place not in known)


def _timed(model: BayesModel, action: Any) -> float:
    _synchronise(model.backbone.device)
    start = time.perf_counter()
    action()
    _synchronise(model.backbone.device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _padded(encoded: Encoded, batch: Sequence[int]) -> int:
    return len(batch) * max(len(encoded.ids[i]) for i in batch)


def _forward_tokens(encoded: Encoded) -> int:
    batches = length_grouped_batches(encoded.lengths, FORWARD, shuffle=False)
    return sum(_padded(encoded, batch) for batch in batches)


def _parameters(model: BayesModel) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    head: list[Tensor] = list(model.head.parameters())
    weights = model.backbone.weights
    rest = [*model.backbone.transformer.parameters(), *(weights.parameters() if weights else ())]
    adapter: list[Tensor] = [p for p in rest if p.requires_grad]
    frozen: list[Tensor] = [p for p in rest if not p.requires_grad]
    return adapter, [p for p in head if p.requires_grad], frozen


def _tensors(model: BayesModel) -> list[Tensor]:
    modules: list[nn.Module] = [model.backbone, model.head]
    return [t for m in modules for t in [*m.parameters(), *m.buffers()]]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _cache_bytes(model: BayesModel, parts: Sequence[Encoded]) -> int:
    """Return the bytes of the cached states: one vector per token of every distinct text."""
    if model.cache is None:
        return 0
    texts = {tuple(ids) for part in parts for ids in part.ids}
    element = torch.empty(0, dtype=model.backbone.dtype).element_size()
    width = model.head.in_features
    return sum(map(len, texts)) * int(width) * element  # pyright: ignore[reportArgumentType]


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    return f"{minutes} min" if hours == 0 else f"{hours} h {minutes - 60 * hours} min"
