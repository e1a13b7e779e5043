"""How time and memory grow with rows, classes, features, rank, length of texts and draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from bench.speed.measure import Row, peak, timed
from bench.speed.step import loop_of
from bench.speed.texts import tasks

from bayestune.config import FinalizeConfig
from bayestune.data import Encoded
from bayestune.finalize import Features
from bayestune.finalize.select import select
from bayestune.head import GaussianHead
from bayestune.model import BayesModel, build
from bayestune.posterior import Predictive

Make = Callable[[int], Callable[[], Any]]

#: Features of a head that is stepped or asked; rows, features and classes of a refit.
WIDE = 1024
ROWS, FEATURES = 8192, 512


def run(device: str, base: str, repeats: int, small: bool = False) -> list[Row]:
    """Measure every curve, or two small sizes of each."""

    def curve(what: str, over: str, sizes: Sequence[int], make: Make) -> Row:
        return _curve(what, over, (2, 4) if small else sizes, make, device, repeats)

    steps, passes = _Steps(device, base), _Passes(device, base)
    return [
        curve("training step, 8 texts", "T, tokens of a text", (32, 64, 128, 256), steps.tokens),
        curve("training step, 8 texts of 32 tokens", "r, rank", (8, 16, 32, 64), steps.rank),
        curve("prediction, 8 texts", "T, tokens of a text", (32, 64, 128, 256), passes.tokens),
        curve("prediction of 8 texts, draws at once", "S, draws", (2, 5, 10, 20), passes.draws),
        curve(
            f"head, a step of 32 rows, D = {WIDE:,}",
            "K, classes",
            (64, 256, 1024),
            _step_of(device, "K"),
        ),
        curve(
            "head, a step of 32 rows, K = 16",
            "D, features",
            (512, 2048, 8192),
            _step_of(device, "D"),
        ),
        curve(
            f"predictive of 256 rows, D = {WIDE:,}",
            "K, classes",
            (64, 256, 1024),
            _predictive(device),
        ),
        curve(
            f"refit, dense, D = {FEATURES}, K = 4",
            "N, rows",
            (4096, 16384, 65536),
            _refit(device, "N"),
        ),
        curve(
            f"refit, dense, N = {ROWS:,}, K = 4",
            "D, features",
            (512, 1024, 2048),
            _refit(device, "D"),
        ),
        curve(
            f"refit, dense, N = {ROWS:,}, D = {FEATURES}",
            "K, classes",
            (4, 16, 64),
            _refit(device, "K"),
        ),
    ]


def _curve(
    what: str, over: str, sizes: Sequence[int], make: Make, device: str, repeats: int
) -> Row:
    seconds, memory = [], []
    for size in sizes:
        work = make(size)
        work()
        seconds.append(statistics.median(timed(work, device) for _ in range(repeats)))
        before, most = peak(work, device)
        memory.append(most - before)
        del work
    detail = {"in": over, "sizes": list(sizes), "seconds": seconds, "mb": memory}
    detail["memory_exponent"] = _exponent(sizes, [max(m, 0.1) for m in memory])
    return Row(what, _exponent(sizes, seconds), "", "", "", detail)


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return d ln value / d ln size between the last two sizes."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def _encoded(model: BayesModel, texts: int, tokens: int) -> Encoded:
    """Return texts of exactly so many tokens."""
    ids = torch.randint(100, 1000, (texts, tokens), generator=torch.Generator().manual_seed(0))
    vocabulary = model.backbone.transformer.get_input_embeddings().num_embeddings  # pyright: ignore
    return Encoded((ids % vocabulary).tolist(), None, 0)


class _Steps:
    """Training steps of the default method."""

    def __init__(self, device: str, base: str) -> None:
        self.device, self.base = device, base

    def tokens(self, size: int, rank: int = 8) -> Callable[[], Any]:
        task = tasks(8)[0]
        model = build(base=self.base, labels=task, device=self.device, rank=rank)
        loop = loop_of(model, task)
        loop.rows = replace(loop.rows, encoded=_encoded(model, 8, size))
        return lambda: loop.run_step(list(range(8)))

    def rank(self, size: int) -> Callable[[], Any]:
        return self.tokens(32, size)


class _Passes:
    """Predictions."""

    def __init__(self, device: str, base: str) -> None:
        self.device, self.base, self.task = device, base, tasks(8)[0]

    def tokens(self, size: int) -> Callable[[], Any]:
        model = build(base=self.base, labels=self.task, device=self.device)
        encoded = _encoded(model, 8, size)
        return lambda: model.predict_features(model.observe_encoded(encoded))

    def draws(self, size: int) -> Callable[[], Any]:
        model = build("blob", self.base, self.task, device=self.device, predict={"samples": size})
        encoded = _encoded(model, 8, 32)
        return lambda: model.predict_features(model.observe_encoded(encoded))


def _head(device: str, K: int, D: int) -> tuple[GaussianHead, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    phi, labels = torch.randn(256, D, device=device), torch.arange(256, device=device) % K
    head = GaussianHead(in_features=D, num_classes=K).to(device)
    head.start(phi, labels, None)
    return head, phi, labels


def _step_of(device: str, vary: str) -> Make:
    def make(size: int) -> Callable[[], Any]:
        head, phi, labels = _head(device, **{"K": 16, "D": WIDE, vary: size})
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)

        def step() -> None:
            (head.kl() / 1000 - head.bound(phi[:32], labels[:32]).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def _predictive(device: str) -> Make:
    def make(size: int) -> Callable[[], Any]:
        head, phi, _ = _head(device, size, WIDE)

        @torch.inference_mode()
        def predict() -> Any:
            return Predictive.from_moments(*head.moments(phi))

        return predict

    return make


def _refit(device: str, vary: str) -> Make:
    def make(size: int) -> Callable[[], Any]:
        sizes = {"N": ROWS, "K": 4, "D": FEATURES, vary: size}
        head, _, _ = _head(device, sizes["K"], sizes["D"])
        phi = torch.randn(sizes["N"], sizes["D"], device=device)
        fit = Features(phi, torch.zeros(len(phi), dtype=torch.int64, device=device))
        config = FinalizeConfig(refresh="block", precision=1.0, refit="none", temperature="none")
        return lambda: select(head, fit, None, config)

    return make
