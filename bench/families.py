"""Covariance families and bounds as training objectives, on SST-2, TREC and CLINC150.

Each variant of PoLAR-VBLL trains as in bench/compare.py, at the rate chosen there for the default,
the KL weight raced for each. What it learnt (features of all rows, posterior) is written to a file
per task, seed and variant; bench/finalisers.py reads these and nothing is trained twice.

    python bench/families.py --data DATA --out FEATURES [--tasks ...] [--seeds 0,1,2]
        [--variants jensen,tilted,...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from compare import CACHES, EPOCHS, load_splits, read_all, train_one
from safetensors.torch import save_file

from bayestune.config import merge
from bayestune.files import new_folder, write_json
from bayestune.training.checkpoint import restore
from bayestune.training.run import environment

#: What all variants have in common, so that one thing differs at a time.
COMMON: dict[str, Any] = {"train": {"deviations": "adam"}}
#: Variants: what differs from the defaults of ``polar_vbll``.
VARIANTS: dict[str, dict[str, Any]] = {
    "jensen": {},
    "tilted": {"head": {"bound": "tilted"}},
    "exact": {"head": {"bound": "exact"}},
    "monte_carlo": {"head": {"bound": "monte_carlo"}},
    "low_rank": {"head": {"covariance": "low_rank"}},
    "kronecker": {"head": {"covariance": "kronecker"}},
    "eigen": {"head": {"covariance": "eigen"}},
    "dense": {"head": {"covariance": "dense"}},
    "natural": {"train": {"deviations": "natural"}},
    "natural_eigen": {"train": {"deviations": "natural"}, "head": {"covariance": "eigen"}},
    "head_steps": {"train": {"head_steps": 4}},
}
#: The rates that bench/compare.py chose for the default.
RATES = {"sst2": 4e-3, "trec": 1.6e-2, "clinc150": 8e-3}
#: Dense blocks of 150 classes of 576 features would be stepped 940 times.
TOO_LARGE = {("clinc150", "dense")}


def learn(data: Path, out: Path, task: str, seed: int, variant: str) -> None:
    """Train one variant and write its features and posterior at the best epoch."""
    splits = load_splits(data, task, seed)
    lr = RATES[task]
    changes = merge(COMMON, VARIANTS[variant])
    model, session, seconds = train_one(splits, "polar_vbll", changes, task, lr, seed)
    restore(model.backbone, model.head, session.best_tensors)
    tensors = {f"phi.{k}": v for k, v in read_all(model, session, splits).items()}
    assert session.val is not None
    tensors |= {"labels.fit": session.rows.labels, "labels.val": session.val.labels}
    tensors["labels.test"] = torch.tensor(splits.test.targets)
    posterior = model.head.posterior_tensors()  # pyright: ignore[reportCallIssue]
    tensors |= {f"head.{k}": v for k, v in posterior.items()}
    tensors["head.weight"] = model.head.weight.detach()  # pyright: ignore
    with new_folder(out) as staging:
        save_file(
            {k: v.contiguous().clone() for k, v in tensors.items()}, staging / "learnt.safetensors"
        )
        facts = {"kl": session.kappa, "kl_tried": session.kappas, "lr": lr, "seconds": seconds}
        facts |= {"best": session.best, "history": session.history, "environment": environment()}
        write_json(staging / "facts.json", facts)
    print(f"{task} seed {seed} {variant}: kl {session.kappa:g} best {session.best}", flush=True)


def main() -> None:
    """Train all variants that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(EPOCHS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in map(int, arguments.seeds.split(",")):
        for task in arguments.tasks.split(","):
            for variant in arguments.variants.split(","):
                folder = arguments.out / task / f"seed{seed}-{variant}"
                if not folder.is_dir() and (task, variant) not in TOO_LARGE:
                    learn(arguments.data, folder, task, seed, variant)
            CACHES.pop((task, seed), None)


if __name__ == "__main__":
    main()
