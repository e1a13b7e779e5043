"""Accuracy and cost of every predictive against a million draws of the logits.

    python bench/predictive.py --out runs/predictive                    # resumable, cell by cell
    python bench/predictive.py --out runs/predictive --table docs/results/predictive.md

A cell is a number of classes K and a mean variance v: problems with means 2 N(0, 1), one class
raised by ln K + U(0, 2), and variances v U(0, 2), all independent. The truth is a float64 average
over independent draws; its own error is half the distance of its two halves. The methods run in
float32, as in a prediction, and are timed in turns within the same process.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayestune.files import read_json, write_json, write_text
from bayestune.posterior import Predictive
from bayestune.posterior.normals import default_samples

CLASSES = (2, 5, 20, 150, 1000)
VARIANCES = (0.1, 1.0, 4.0, 16.0, 100.0)
#: Draws behind the truth; fewer where a million would take hours.
DRAWS = {2: 10**6, 5: 10**6, 20: 10**6, 150: 400_000, 1000: 40_000}
METHODS: dict[str, dict[str, Any]] = {
    "sample": {"method": "sample"},
    "sample, S = 16": {"method": "sample", "samples": 16},
    "sample, S = 64": {"method": "sample", "samples": 64},
    "sample, S = 256": {"method": "sample", "samples": 256},
    "sample, S = 1,024": {"method": "sample", "samples": 1024},
    "exact": {"method": "exact"},
    "probit": {"method": "probit"},
    "laplace_bridge": {"method": "laplace_bridge"},
}
ERRORS = {"tv": "total variation", "nll": "−log p", "mi": "information"}


def problems(K: int, v: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return logit means and variances, each ``(count, K)``."""
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(count, K, generator=g, dtype=torch.float64)
    raised = torch.randint(K, (count,), generator=g)
    lift = math.log(K) + 2 * torch.rand(count, generator=g, dtype=torch.float64)
    mu[torch.arange(count), raised] += lift
    return mu, v * 2 * torch.rand(count, K, generator=g, dtype=torch.float64)


def truth(mu: Tensor, var: Tensor, draws: int, g: torch.Generator) -> tuple[Predictive, Predictive]:
    """Average softmax and its entropy of one problem ``(K,)`` over draws, in two halves."""
    halves = []
    for _ in range(2):
        probs, entropy = torch.zeros_like(mu), 0.0
        for start in range(0, draws // 2, rows := max(1, 2**17 // len(mu))):
            size = (min(rows, draws // 2 - start), len(mu))
            z = torch.randn(size, generator=g, dtype=torch.float64).mul_(var.sqrt()).add_(mu)
            z -= z.amax(1, keepdim=True)
            e = z.exp()
            total = e.sum(1)
            probs += (1 / total) @ e
            entropy += float((total.log() - torch.linalg.vecdot(e, z) / total).sum())
        halves.append((probs / (draws // 2), entropy / (draws // 2)))
    (p, a), (q, b) = halves
    gap, middle = (p - q) / 2, (p + q) / 2
    return split(middle, (a + b) / 2), split(middle + gap, a)


def split(probs: Tensor, aleatoric: float) -> Predictive:
    """Return the prediction of one row that these averages are."""
    entropy = torch.special.entr(probs).sum()
    fields = (probs, entropy, torch.tensor(aleatoric).double(), entropy - aleatoric)
    return Predictive(*(f.unsqueeze(0) for f in fields))


def errors(found: Predictive, true: Predictive) -> dict[str, list[float]]:
    """Return the errors of every problem by name."""
    p, q = found.probs.double(), true.probs
    best = q.argmax(1, keepdim=True)
    return {
        "tv": ((p - q).abs().sum(1) / 2).tolist(),
        "nll": (p.gather(1, best).log() - q.gather(1, best).log()).abs().flatten().tolist(),
        "mi": (found.epistemic.double() - true.epistemic).abs().tolist(),
    }


def cost(K: int, v: float, seed: int, seconds: float = 0.05) -> dict[str, float]:
    """Return microseconds per row: medians over turns of batches of at least some length."""
    rows = max(16, min(2048, 40_000 // K))
    mu, var = (t.float() for t in problems(K, v, rows, seed))
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(4):
        for name, how in METHODS.items():
            start, runs = time.perf_counter(), 0
            while not runs or time.perf_counter() - start < seconds:
                Predictive.from_moments(mu, var, **how)
                runs += 1
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - start) / runs / rows * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def cell(K: int, v: float, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell."""
    mu, var = problems(K, v, args.problems, args.seed)
    g = torch.Generator().manual_seed(args.seed + 1)
    pairs = [truth(m, s, DRAWS[K], g) for m, s in zip(mu, var, strict=True)]
    true = Predictive.concatenate([pair[0] for pair in pairs])
    found = {"truth's own": errors(Predictive.concatenate([pair[1] for pair in pairs]), true)}
    for name, how in METHODS.items():
        p = Predictive.from_moments(mu.float(), var.float(), **how)
        found[name] = errors(p, true)
    return {
        "classes": K,
        "variance": v,
        "information": float(true.epistemic.mean()),
        "draws": DRAWS[K],
        "errors": {
            name: {e: [statistics.fmean(x), max(x)] for e, x in by.items()}
            for name, by in found.items()
        },
        "microseconds": cost(K, v, args.seed + 2),
    }


def number(x: float) -> str:
    return f"{x:.1e}".replace("e-0", "e-") if x < 0.00095 else f"{x:.3f}".lstrip("0")


def table(cells: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Return the results as Markdown."""
    text = [
        "# Predictives against a million draws\n",
        f"    python bench/predictive.py --out DIR --problems {args.problems} --seed {args.seed}\n",
        f"torch {torch.__version__}, Python {platform.python_version()}, one thread of a shared "
        f"{platform.machine()} CPU, methods in float32; written by the command above with "
        "`--table`.\n",
        " ".join(line.strip() for line in str(__doc__).split("\n\n")[2].splitlines()) + "\n",
        "- Errors are mean / largest over the problems: total variation of the probabilities, "
        "|Δ log p| of the likeliest class, |Δ| of the mutual information, both in nats.\n"
        "- *truth's own* is the error of the draws themselves. No row can be seen to be better; "
        "`exact` should be equal to it.\n"
        "- Time is that of a row in units of `sample`, whose microseconds stand in its row.\n"
        + "- Draws: "
        + ", ".join(f"{n:,} for K = {k:,}" for k, n in DRAWS.items())
        + ".\n",
    ]
    for K in CLASSES:
        text.append(f"## K = {K:,} (`sample` is S = {default_samples(K):,})\n")
        text.append("| v (information) | method | total variation | −log p | information | time |")
        text.append("|---|---|---|---|---|---|")
        for c in (c for c in cells if c["classes"] == K):
            micro = c["microseconds"]
            for name, by in c["errors"].items():
                head = f"{c['variance']:g} ({c['information']:.2f})" if "truth" in name else ""
                spent = f"{micro[name] / micro['sample']:.2g} ×" if name in micro else ""
                if name == "sample":
                    spent = f"1 ({micro[name]:.0f} µs)"
                shown = " | ".join(" / ".join(number(x) for x in by[e]) for e in ERRORS)
                text.append(f"| {head} | {name} | {shown} | {spent} |")
        text.append("")
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for K in args.classes:
        for v in VARIANCES:
            file = args.out / f"K{K}_v{v:g}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, cell(K, v, args))
                print(file, flush=True)
    if args.table:
        files = [args.out / f"K{K}_v{v:g}.json" for K in CLASSES for v in VARIANCES]
        write_text(args.table, table([read_json(f) for f in files], args))


if __name__ == "__main__":
    main()
