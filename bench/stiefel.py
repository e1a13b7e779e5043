"""Cost and accuracy of the Stiefel step against other retractions and the n × n landing form.

    python bench/stiefel.py
    python bench/stiefel.py --shapes 4096x16 --count 8 --steps 2000 --device cuda

Every variant is a whole optimiser step over the same factors and gradients. Within each repeat the
variants take turns in a drawn order, as each finds the caches as the one before left them. Of one
run come two ratios: the median over the repeats, and that of the fastest, which tells more where
other work shares the machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor, nn

from bayestune.geometry import orthogonality_error, random_point, step_cayley, step_qr
from bayestune.geometry.stiefel import Total
from bayestune.optim import StiefelAdam

MODULE = "bayestune.optim.stiefel_adam"


def landing_n_by_n(X: Tensor, G: Tensor, penalty: float, total: Total) -> Tensor:
    """The landing field as it is written, with its n × n skew matrix."""
    skew = G @ X.mT - X @ G.mT  # (..., n, n)
    gram = X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    return skew @ X + penalty * X @ gram


def step_householder(X: Tensor, V: Tensor, total: Total) -> Tensor:
    """Retract by the Q factor with a positive diagonal of R, by reflections of all rows."""
    Q, R = torch.linalg.qr(X + V)
    return Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


@contextmanager
def replaced(name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    with mock.patch(f"{MODULE}.{name}", function):
        yield


VARIANTS = {
    "polar (ours)": ("retract", nullcontext),
    "QR, Cholesky": ("retract", lambda: replaced("step_polar", step_qr)),
    "QR, Householder": ("retract", lambda: replaced("step_polar", step_householder)),
    "Cayley": ("retract", lambda: replaced("step_polar", step_cayley)),
    "landing, r × r": ("landing", nullcontext),
    "landing, n × n": ("landing", lambda: replaced("landing_field", landing_n_by_n)),
}


class Variant:
    """One optimiser with its own copy of the factors."""

    def __init__(self, name: str, points: list[Tensor], lr: float) -> None:
        self.update, self.context = VARIANTS[name]
        self.params = [nn.Parameter(p.clone()) for p in points]
        group = {"params": self.params, "manifold": "stiefel", "update": self.update}
        self.optimizer = StiefelAdam([group], lr=lr)

    def step(self, gradients: list[Tensor]) -> float:
        """Take one step and return its time in seconds."""
        for p, gradient in zip(self.params, gradients, strict=True):
            p.grad = gradient
        with self.context():
            synchronise(self.params[0].device)
            start = time.perf_counter()
            self.optimizer.step()
            synchronise(self.params[0].device)
            return time.perf_counter() - start

    def error(self) -> float:
        return max(orthogonality_error(p.detach().double()).item() for p in self.params)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw(n: int, r: int, count: int, generator: torch.Generator, device: str) -> list[Tensor]:
    return [torch.randn(n, r, generator=generator).to(device) for _ in range(count)]


def bench_speed(n: int, r: int, args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(args.seed)
    rng = random.Random(args.seed)
    points = [random_point(n, r, generator=generator).to(args.device) for _ in range(args.count)]
    variants = {name: Variant(name, points, args.lr) for name in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(args.repeats + 1):
        gradients = draw(n, r, args.count, generator, args.device)
        for name in rng.sample(list(variants), len(variants)):
            seconds = variants[name].step(gradients)
            if repeat:  # the first round warms up
                times[name].append(seconds)
    ours = times["polar (ours)"]
    print(f"\n({n}, {r}), {args.count} factors: time of a step, {args.repeats} repeats")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
        middle = statistics.median(seconds) / args.count
        fastest = min(seconds) / min(ours)
        print(
            f"  {name:16s} {1e3 * middle:9.3f} ms per factor   {ratio:7.2f} × ours, "
            f"fastest {fastest:.2f} ×"
        )


def bench_error(n: int, r: int, args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(args.seed)
    points = [random_point(n, r, generator=generator).to(args.device)]
    mean = draw(n, r, 1, generator, args.device)[0]
    print(f"\n({n}, {r}): largest ‖XᵀX − I‖_F over {args.steps} steps, lr {args.lr:g}")
    names = ("polar (ours)", "QR, Cholesky", "Cayley", "landing, r × r")
    variants = {name: Variant(name, points, args.lr) for name in names}
    worst = dict.fromkeys(variants, 0.0)
    for _ in range(args.steps):
        gradient = 0.3 * mean + draw(n, r, 1, generator, args.device)[0]
        for name, variant in variants.items():
            variant.step([gradient])
            worst[name] = max(worst[name], variant.error())
    for name, error in worst.items():
        print(f"  {name:16s} {error:.2e}")


def bench_training(args: argparse.Namespace) -> None:
    """Recover a matrix of rank r from noisy products with it, by each retraction, over seeds."""
    m, n, r, batch = 96, 128, 8, 16
    names = ("polar (ours)", "QR, Cholesky", "Cayley")
    gaps: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(args.seeds):
        for name in names:
            g = torch.Generator().manual_seed(seed)
            left, right, X, Y = (random_point(k, r, generator=g) for k in (m, n, m, n))
            target = left @ torch.diag(torch.linspace(r, 1, r)) @ right.mT  # (m, n)
            factors = [nn.Parameter(X), nn.Parameter(Y)]
            core = nn.Parameter(torch.zeros(r, r))
            groups = [
                {"params": factors, "manifold": "stiefel"},
                {"params": [core], "manifold": "core"},
            ]
            optimizer = StiefelAdam(groups)
            with VARIANTS[name][1]():
                for k in range(args.steps):
                    for group in optimizer.param_groups:
                        group["lr"] = 0.02 * (1 - k / args.steps)
                    x = torch.randn(batch, n, generator=g)
                    y = x @ target.mT + torch.randn(batch, m, generator=g)
                    optimizer.zero_grad()
                    (x @ factors[1] @ core.mT @ factors[0].mT - y).square().mean().backward()
                    optimizer.step()
            found = factors[0] @ core @ factors[1].mT
            gaps[name].append(float((found - target).norm().detach() / target.norm()))
    print(f"\nrecovery of a ({m}, {n}) matrix of rank {r}, {args.steps} steps: relative error")
    for name, values in gaps.items():
        print(f"  {name:16s} " + "  ".join(f"{value:.4f}" for value in values))


def shape(text: str) -> tuple[int, int]:
    n, r = text.split("x")
    return int(n), int(r)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=shape, nargs="+", default=[(4096, 16), (11008, 16)])
    parser.add_argument("--count", type=int, default=2, help="factors per step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="steps of accuracy and training")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="of the training run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), float32")
    for n, r in args.shapes:
        bench_speed(n, r, args)
        bench_error(n, r, args)
    bench_training(args)


if __name__ == "__main__":
    main()
