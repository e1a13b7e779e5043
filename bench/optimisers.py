"""Steps of X and Y compared: StiefelAdam's, a Muon-like one, SGD with momentum.

Everything but the step of X and Y is the same: PoLAR-VBLL as in bench/compare.py at κ = 1, with the
core's spectral step and the head's at their rates. Each optimiser tries three rates on seed 0 and
keeps the one with the lowest held-out negative log-likelihood; the other seeds run at that one, or
at --lr. Each cell is written as it finishes and skipped when it is there. No test set is read.

    python bench/optimisers.py --data DATA [--out docs/results/optimisers] [--only adam,muon,sgd]
    python bench/optimisers.py --data DATA --only adam --lr 8e-3
    python bench/optimisers.py --table
    python bench/optimisers.py --cost

DATA as in bench/compare.py.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from compare import CACHES, SETTINGS, load_splits
from table import spread
from torch import Tensor

from bayestune.config import merge
from bayestune.files import write_json
from bayestune.geometry import polar_factor, project_tangent, random_point, step_polar
from bayestune.model import build
from bayestune.optim import StiefelAdam
from bayestune.progress import shown
from bayestune.training.fit import Session
from bayestune.training.run import Journal, environment

TASK = "sst2"
#: Half the epochs of bench/compare.py, and the rate that it chose there for PoLAR-VBLL.
RECIPE: dict[str, Any] = {"train": {"epochs": 4, "lr": 4e-3, "kl": 1.0}}


class Timed(StiefelAdam):
    """StiefelAdam that notes the time of a step and the root mean square change of X and Y."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self.seconds: list[float] = []
        self.changes: list[float] = []

    def step(self, closure: Any = None) -> Any:
        factors = [p for g in self.param_groups if g["manifold"] == "stiefel" for p in g["params"]]
        before = [p.detach().clone() for p in factors]
        start = time.perf_counter()
        result = super().step(closure)
        self.seconds.append(time.perf_counter() - start)
        if factors:  # the head has an optimiser of its own
            gaps = [(p.detach() - b).square().mean() for p, b in zip(factors, before, strict=True)]
            self.changes.append(float(torch.stack(gaps).mean().sqrt()))
        return result


class Momentum(Timed):
    """Riemannian SGD with momentum, ``m ← β Π(m) + (1 − β) Π(∇L)`` and ``V = −lr · m``."""

    def _step_retract(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta = group["betas"][0]
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            state.setdefault("exp_avg", torch.zeros_like(p))
        X = torch.stack(params)  # (B, n, r)
        xi = project_tangent(X, torch.stack([p.grad for p in params if p.grad is not None]))
        m = torch.stack([state["exp_avg"] for state in states])
        m = project_tangent(X, m).lerp_(xi, 1 - beta)
        X = step_polar(X, self.direction(X, m, xi, beta) * -group["lr"])
        torch._foreach_copy_(params, list(X.unbind()))
        torch._foreach_copy_([state["exp_avg"] for state in states], list(m.unbind()))

    def direction(self, X: Tensor, m: Tensor, xi: Tensor, beta: float) -> Tensor:
        return m


class Muon(Momentum):
    """Its polar factor instead, steepest descent in the spectral norm, ``V = −lr √n Π(polar)``.

    √n gives it a root mean square of lr per element. The projection makes it tangent again; of a
    factor with r ≪ n it takes next to nothing.
    """

    def direction(self, X: Tensor, m: Tensor, xi: Tensor, beta: float) -> Tensor:
        return project_tangent(X, polar_factor(m.lerp(xi, 1 - beta))) * X.shape[-2] ** 0.5


#: The optimisers and the rates of X and Y that each tries. Those of SGD, whose step has the size of
#: the gradient, lie around the one with the root mean square change of Adam.
OPTIMISERS: dict[str, tuple[type[Timed], tuple[float, ...]]] = {
    "adam": (Timed, (2e-3, 4e-3, 8e-3)),
    "muon": (Muon, (1e-3, 2e-3, 4e-3)),
    "sgd": (Momentum, (10, 30, 100)),
}


def cell(data: Path, name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train with one optimiser and return what it reached on the held-out rows."""
    optimisers: list[Timed] = []

    def new(groups: list[dict[str, Any]]) -> Timed:
        for group in groups:
            if group.get("manifold") == "stiefel":
                group["peak"] = lr
        optimisers.append(OPTIMISERS[name][0](groups))
        return optimisers[-1]

    splits = load_splits(data, TASK, seed)
    config = merge(SETTINGS, RECIPE)
    model = build("polar_vbll", "smollm2-135m", splits.train, config=config, seed=seed)
    model.cache = CACHES.get((TASK, seed)) or model.new_cache()
    CACHES[TASK, seed] = model.cache
    session = Session(model, splits.train, splits.val, Journal(None), shown)
    start = time.monotonic()
    with mock.patch("bayestune.training.loop.StiefelAdam", new):
        session.optimise()
    adapter = optimisers[0]
    return {
        "optimiser": name,
        "task": TASK,
        "seed": seed,
        "lr": lr,
        "recipe": config,
        "val_nll": session.best["val_nll"],
        "seconds": time.monotonic() - start,
        "rms_change": statistics.fmean(adapter.changes),
        "history": session.history,
        "environment": environment(),
    }


def run(out: Path, data: Path, name: str, seeds: int, lr: float | None) -> None:
    """Run all cells of one optimiser that are not there yet, further seeds at a rate if given."""

    def reached(lr: float, seed: int) -> float:
        file = out / f"{name}-{lr:g}-seed{seed}.json"
        if not file.is_file():
            write_json(file, cell(data, name, lr, seed))
        return json.loads(file.read_text(encoding="utf-8"))["val_nll"]

    tried = {lr: reached(lr, 0) for lr in OPTIMISERS[name][1]}
    best = lr or min(tried, key=tried.__getitem__)
    print(f"{name}: {tried} -> {best:g}", flush=True)
    for seed in range(1, seeds):
        print(f"{name} seed {seed}: {reached(best, seed):.4f}", flush=True)


def table(out: Path) -> None:
    """Print the cells as Markdown: a row per optimiser and rate, means over its seeds."""
    cells = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(out.glob("*.json"))]
    print(
        "| step of X, Y | lr | seeds | held-out NLL | accuracy | train NLL | stable rank "
        "| RMS change per step | ‖XᵀX − I‖ |"
    )
    print("|" + "---|" * 9)
    for name, (_, rates) in OPTIMISERS.items():
        for lr in rates:
            runs = [c for c in cells if (c["optimiser"], c["lr"]) == (name, lr)]
            if not runs:
                continue
            best = [min(c["history"], key=lambda row: row["val_nll"]) for c in runs]
            last = [c["history"][-1] for c in runs]
            numbers = [
                spread([row["val_nll"] for row in best]),
                spread([row["val_accuracy"] for row in best]),
                spread([row["train_nll"] for row in last]),
                spread([row["stable_rank"] for row in last], 2),
                f"{statistics.fmean(c['rms_change'] for c in runs):.1e}",
                f"{max(row['orthogonality_error'] for row in last):.0e}",
            ]
            print(f"| {name} | {lr:g} | {len(runs)} | {' | '.join(numbers)} |")


def cost(repeats: int = 100) -> None:
    """Print the time of a step of 24 factors (576, 8), as ratios of one run with turns drawn."""
    rng, g = random.Random(0), torch.Generator().manual_seed(0)
    points = [random_point(576, 8, generator=g) for _ in range(24)]
    steppers: dict[str, Timed] = {}
    for name in OPTIMISERS:
        factors = [torch.nn.Parameter(p.clone()) for p in points]
        steppers[name] = OPTIMISERS[name][0]([{"params": factors, "manifold": "stiefel"}])
    for _ in range(repeats):
        gradients = [torch.randn(576, 8, generator=g) for _ in points]
        for stepper in rng.sample(list(steppers.values()), len(steppers)):
            for p, gradient in zip(stepper.param_groups[0]["params"], gradients, strict=True):
                p.grad = gradient
            stepper.step()
    for name, stepper in steppers.items():
        pairs = zip(stepper.seconds, steppers["adam"].seconds, strict=True)
        print(f"{name:5s} {statistics.median(a / b for a, b in pairs):.2f} × adam")


def main() -> None:
    """Run all cells that are not there yet, or print the table of those that are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/optimisers"))
    parser.add_argument("--only", default=",".join(OPTIMISERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, help="rate of the further seeds; the best if omitted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the cells and run nothing")
    parser.add_argument("--cost", action="store_true", help="time the steps alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.table:
        table(arguments.out)
        return
    if arguments.cost:
        cost()
        return
    if arguments.data is None:
        parser.error("--data is needed; see the top of this file")
    for name in arguments.only.split(","):
        run(arguments.out, arguments.data, name, arguments.seeds, arguments.lr)


if __name__ == "__main__":
    main()
