"""What a bound or a covariance does to the features: read from what bench/families.py has learnt.

    python bench/features.py --learnt FEATURES

Per task and variant, means over seeds: the bound's own view of the training rows, the confidence
of the mean, and the shape of the features. ``spread`` is the mean logit variance of test rows
under the trained posterior, ``scatter`` the share of the features' energy that lies between
classes, ``rank`` the participation ratio of the features' covariance, ``T`` the temperature that
the mean alone would want on held-out rows.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch
from families import VARIANTS
from finalisers import head_of, read
from torch import Tensor

from bayestune.finalize import fit_temperature


def shape_of(phi: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the share of centred energy between classes and the participation ratio."""
    centred = phi.double() - phi.double().mean(0)
    means = torch.stack([centred[labels == k].mean(0) for k in labels.unique()])
    between = means[torch.searchsorted(labels.unique(), labels)].square().sum()
    values = torch.linalg.eigvalsh(centred.T @ centred)
    return float(between / centred.square().sum()), float(values.sum() ** 2 / values.square().sum())


@torch.no_grad()
def describe(folder: Path, variant: str) -> dict[str, float]:
    """Return the numbers of one trained variant."""
    tensors, facts = read(folder)
    head = head_of(tensors, VARIANTS[variant].get("head", {}).get("bound", "jensen"))
    fit, val, test = (tensors[f"phi.{name}"] for name in ("fit", "val", "test"))
    y, held = tensors["labels.fit"], tensors["labels.val"]
    mu, _ = head.moments(val)
    temperature, nll = fit_temperature(mu, None, held)
    scatter, rank = shape_of(test, tensors["labels.test"])
    point = head(fit).log_softmax(1).gather(1, y[:, None])
    energy = fit.square().sum(1).mean() / head.feature_energy
    return {
        "κ": facts["kl"],
        "train NLL of the mean": float(-point.mean()),
        "held-out NLL of the mean at T": nll,
        "T": temperature,
        "spread": float(head.moments(test)[1].mean()),
        "E‖φ‖² / at the start": float(energy),
        "scatter": scatter,
        "rank": rank,
    }


def main() -> None:
    """Print one Markdown table per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learnt", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for folder in sorted(arguments.learnt.glob("*/seed*-*")):
        variant = folder.name.partition("-")[2]
        rows[folder.parent.name][variant].append(describe(folder, variant))
    for task, found in rows.items():
        names = list(next(iter(found.values()))[0])
        print(f"\n### {task}\n\n| trained with | seeds | {' | '.join(names)} |")
        print("|" + "---|" * (len(names) + 2))
        for variant in (v for v in VARIANTS if v in found):
            cells = [f"{fmean(c[name] for c in found[variant]):.3g}" for name in names]
            print(f"| {variant} | {len(found[variant])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
