"""Is the posterior itself calibrated? Coverage of credible intervals on synthetic classification.

Weights are drawn from the prior and labels from the weights, so that the intervals of the exact
posterior cover the truth as often as they say, on average over draws. Every approximation gets the
true prior; what misses is its own. Asked are the difference of two logits and the probability of a
class at fresh inputs.

    python bench/coverage.py [--repeats 300]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayestune.posterior import Ascent, ascend, bounds, curvature, laplace, mode

#: Nominal probability of an interval, and the normal quantile of its half-width.
NOMINAL, QUANTILE = 0.9, 1.6448536


@dataclass(frozen=True)
class Draw:
    """One synthetic problem.

    Attributes:
        phi: features ``(N, D)``.
        labels: class indices ``(N,)``.
        truth: the weights that made them ``(K, D)``.
        fresh: inputs to ask about ``(M, D)``.
    """

    phi: Tensor
    labels: Tensor
    truth: Tensor
    fresh: Tensor


def draw(K: int, D: int, N: int, precision: float, seed: int) -> Draw:
    """Draw weights from N(0, I/τ), features from N(0, I) and labels from softmax(Wφ)."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(K, D, generator=g, dtype=torch.float64) * precision**-0.5
    phi = torch.randn(N, D, generator=g, dtype=torch.float64)
    labels = torch.multinomial((phi @ truth.T).softmax(1), 1, generator=g).squeeze(1)
    fresh = torch.randn(20, D, generator=g, dtype=torch.float64)
    return Draw(phi, labels, truth, fresh)


def posteriors(d: Draw, precision: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean ``(K, D)`` and logit (co)variance at the fresh inputs of every approximation."""
    zero = torch.zeros_like(d.truth)

    def likelihood(mu: Tensor) -> Tensor:
        return mu.log_softmax(1).gather(1, d.labels[:, None]).sum()

    W = mode(d.phi, zero, zero, precision, likelihood)
    probs = (d.phi @ W.T).softmax(1)
    own = curvature.bernoulli(probs)
    forms = {
        "Laplace, full": laplace.Full.of(d.phi, probs),
        "Laplace, Kronecker": laplace.Kronecker.of(d.phi, probs),
        "Laplace, class blocks": laplace.Block.of(d.phi, own),
        "Laplace, diagonal": laplace.Diagonal.of(d.phi, own),
    }
    found = {name: (W, form.variance(d.fresh, precision)) for name, form in forms.items()}
    variance = torch.tensor(1 / precision, dtype=torch.float64)
    for bound in ("jensen", "tilted", "exact"):
        up: Ascent = ascend(
            d.phi, d.labels, W, laplace.Block, zero, variance, getattr(bounds, bound)
        )
        found[f"variational, {bound}"] = up.mean, up.form.variance(d.fresh, precision)
    return found


def difference(mu: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the difference of the first two logits, each ``(M,)``."""
    if var.ndim == 2:
        return mu[:, 0] - mu[:, 1], (var[:, 0] + var[:, 1]).sqrt()
    return mu[:, 0] - mu[:, 1], (var[:, 0, 0] + var[:, 1, 1] - 2 * var[:, 0, 1]).sqrt()


def coverage(
    K: int, D: int, N: int, precision: float, repeats: int, names: Callable[[str], bool] = bool
) -> dict[str, tuple[float, float, float]]:
    """Return coverage, its standard error over draws and the mean width of every approximation."""
    hits: dict[str, list[float]] = {}
    widths: dict[str, list[float]] = {}
    for seed in range(repeats):
        d = draw(K, D, N, precision, seed)
        target = d.fresh @ (d.truth[0] - d.truth[1])
        for name, (W, var) in posteriors(d, precision).items():
            if not names(name):
                continue
            centre, deviation = difference(d.fresh @ W.T, var)
            inside = (target - centre).abs() <= QUANTILE * deviation
            hits.setdefault(name, []).append(float(inside.double().mean()))
            widths.setdefault(name, []).append(float(2 * QUANTILE * deviation.mean()))
    return {
        name: (
            float(torch.tensor(h).mean()),
            float(torch.tensor(h).std()) / repeats**0.5,
            float(torch.tensor(widths[name]).mean()),
        )
        for name, h in hits.items()
    }


def main() -> None:
    """Print one table per shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for K, D, N, precision in (
        (2, 4, 40, 0.5),
        (2, 4, 400, 0.5),
        (5, 8, 100, 0.5),
        (5, 8, 1000, 0.5),
    ):
        print(f"\n{K} classes, {D} features, {N} rows, prior variance {1 / precision:g}\n")
        print("| posterior | coverage of 90 % intervals | mean width |\n|---|---|---|")
        for name, (rate, error, width) in coverage(K, D, N, precision, arguments.repeats).items():
            print(f"| {name} | {rate:.3f} ± {error:.3f} | {width:.2f} |", flush=True)


if __name__ == "__main__":
    main()
