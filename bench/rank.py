"""Why ΔW falls to rank one: how much of a layer's input is its mean, and the rank of its gradient.

    python bench/rank.py --data DATA [--task sst2]

Before the adapter has moved, with the head trained for one epoch on the features as they are: for
every adapted layer the share of the input's energy that lies in its mean, and the stable rank of
the gradient with respect to W, of one batch and of a whole epoch. DATA as in bench/compare.py.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from compare import SETTINGS, load_splits
from torch import Tensor, nn

from bayestune.config import merge
from bayestune.geometry import stable_rank
from bayestune.model import build
from bayestune.peft import PolarLinear
from bayestune.progress import shown
from bayestune.training.fit import Session
from bayestune.training.run import Journal


@dataclass
class Seen:
    """What passed through one layer: inputs x ``(T, in)`` and gradients ``(T, out)``."""

    tokens: int = 0
    mean: Tensor | float = 0.0
    energy: float = 0.0
    gradient: Tensor | float = 0.0
    ranks: list[float] = field(default_factory=list)

    def add(self, x: Tensor, grad: Tensor) -> None:
        x, grad = x.flatten(0, -2).double(), grad.flatten(0, -2).double()
        gradient = grad.T @ x  # (out, in)
        self.tokens += len(x)
        self.mean = self.mean + x.sum(0)
        self.energy += float(x.square().sum())
        self.gradient = self.gradient + gradient
        self.ranks.append(float(stable_rank(gradient)))

    def share_of_mean(self) -> float:
        return float(torch.as_tensor(self.mean).square().sum()) / self.tokens / self.energy


def watch(model: nn.Module) -> dict[str, Seen]:
    """Record inputs and output gradients of every adapted layer."""
    seen: dict[str, Seen] = defaultdict(Seen)

    def attach(name: str, layer: nn.Module) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                x = inputs[0].detach()
                output.register_hook(lambda grad: seen[name].add(x, grad))

        layer.register_forward_hook(note)

    for name, layer in model.named_modules():
        if isinstance(layer, PolarLinear):
            attach(name.split("layers.")[-1], layer)
    return seen


def main() -> None:
    """Print one line per adapted layer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    splits = load_splits(arguments.data, arguments.task, 0)
    # A rate too small to move anything: the adapter stays where it starts.
    config = merge(SETTINGS, {"train": {"epochs": 1, "lr": 1e-30, "kl": 1.0}})
    model = build("polar_vbll", "smollm2-135m", splits.train, config=config, seed=0)
    seen = watch(model.backbone)
    Session(model, splits.train, splits.val, Journal(None), shown).optimise()
    print("| layer | mean's share of input energy | rank of a batch's gradient | of an epoch's |")
    print("|---|---|---|---|")
    for name, layer in sorted(seen.items()):
        whole = float(stable_rank(torch.as_tensor(layer.gradient)))
        print(f"| {name} | {layer.share_of_mean():.2f} | {fmean(layer.ranks):.2f} | {whole:.2f} |")


if __name__ == "__main__":
    main()
