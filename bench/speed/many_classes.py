"""The memory of a head of a thousand classes on wide features."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from bench.speed.measure import Row, peak, timed

from bayestune.head import GaussianHead
from bayestune.optim import StiefelAdam, param_groups
from bayestune.posterior import Predictive

K, D, BATCH = 1000, 4096, 32


def run(device: str, base: str, repeats: int, classes: int = K, width: int = D) -> list[Row]:
    """Measure steps and predictions of each scalable covariance; ``base`` is not needed."""
    # Each in a process of its own: what one leaves in memory would count for the next.
    with ProcessPoolExecutor(
        1,
        get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
        max_tasks_per_child=1,
    ) as pool:
        names = ("diagonal", "low_rank", "kronecker")
        return list(pool.map(_memory, names, *([each] * 3 for each in (device, classes, width))))


def _memory(covariance: str, device: str, classes: int, width: int) -> Row:
    torch.manual_seed(0)
    phi = torch.randn(BATCH, width, device=device)
    labels = torch.randint(classes, (BATCH,), device=device)
    seconds: dict[str, float] = {}

    def work() -> None:
        head = GaussianHead(in_features=width, num_classes=classes, covariance=covariance).to(
            device
        )
        head.start(phi, labels, None)
        groups = param_groups(torch.nn.ModuleList([head]), lr=1e-3, head_lr=1e-3)
        optimizer = StiefelAdam(groups)

        def step() -> None:
            features = phi.clone().requires_grad_()
            (head.kl() / 10_000 - head.bound(features, labels).mean()).backward()
            optimizer.step()
            head.zero_grad()

        def predict() -> None:
            with torch.inference_mode():
                Predictive.from_moments(*head.moments(phi))

        step()
        seconds["step"], seconds["predict"] = timed(step, device), timed(predict, device)

    before, most = peak(work, device)
    return Row(
        f"head of K = {classes:,}, D = {width:,}, {covariance}: memory of training and predicting",
        most - before,
        "MB",
        "≤ 2000",
        "mean, deviations, gradients and two moments: 4 bytes each",
        {"seconds": seconds, "parameter_mb": 4e-6 * classes * width},
    )
