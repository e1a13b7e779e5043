"""Every finaliser on what every variant of bench/families.py has learnt: a table per task.

    python bench/finalisers.py --learnt FEATURES --out docs/results/posteriors [--table]

A cell is a task, a seed, a variant (covariance or bound of the training) and a finaliser. It is
computed from the features and the posterior that the training left, in seconds to minutes; cells
that are there are skipped. ``--table`` prints means over seeds of the cells that are there.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from families import VARIANTS
from safetensors.torch import load_file
from table import spread

from bayestune.config import FinalizeConfig, Recipe, TrainConfig
from bayestune.evaluation import score
from bayestune.files import write_json
from bayestune.finalize import Features
from bayestune.head import GaussianHead
from bayestune.methods import parts
from bayestune.prediction import Prediction
from bayestune.training.run import environment


def _config(**options: Any) -> FinalizeConfig:
    return FinalizeConfig(**{"refresh": "none", "scale": 1.0, "temperature": "auto", **options})


FINALISERS: dict[str, FinalizeConfig] = {
    "as trained": _config(temperature="none"),
    "as trained, T": _config(),
    "scaled, T": _config(scale="auto"),
    "diagonal, T": _config(refresh="diagonal"),
    "eigenbasis, T": _config(refresh="eigen"),
    "blocks, T": _config(refresh="block"),
    "Kronecker, T": _config(refresh="kronecker"),
    "full, T": _config(refresh="full"),
    "mode + blocks, T": _config(refresh="block", refit="mode"),
    "mode + eigenbasis, T": _config(refresh="eigen", refit="mode"),
    "mode + eigenbasis by evidence": _config(
        refresh="eigen", refit="mode", precision="evidence", temperature="none"
    ),
    "ascent, T": _config(refresh="eigen", refit="ascent"),
    "default": FinalizeConfig(),
}
#: Too large, or minutes per cell: blocks and the whole curvature of 150 classes.
LEFT_OUT = {
    ("clinc150", name) for name in ("blocks, T", "full, T", "mode + blocks, T", "ascent, T")
} | {("trec", "full, T")}
#: What other variants than the default are finalised with.
SHORT = ("as trained", "as trained, T", "default")


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and facts that bench/families.py wrote."""
    return load_file(folder / "learnt.safetensors"), json.loads(
        (folder / "facts.json").read_text(encoding="utf-8")
    )


def head_of(tensors: dict[str, torch.Tensor], bound: str) -> GaussianHead:
    """Return the head as trained."""
    K, D = tensors["head.weight"].shape
    head = GaussianHead(in_features=D, num_classes=K, bound=bound)  # pyright: ignore
    posterior = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
    weight = posterior.pop("weight")
    head.load_posterior(posterior)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def finish(folder: Path, variant: str, config: FinalizeConfig) -> dict[str, Any]:
    """Apply one finaliser and score the test set."""
    tensors, facts = read(folder)
    head = head_of(tensors, VARIANTS[variant].get("head", {}).get("bound", "jensen"))
    sets = {
        name: Features(tensors[f"phi.{name}"], tensors[f"labels.{name}"])
        for name in ("fit", "val", "test")
    }
    recipe = Recipe(finalize=config, train=TrainConfig(kl=facts["kl"]))
    done, report = parts.finalize(head, sets["fit"], sets["val"], recipe)
    names = [str(k) for k in range(len(tensors["head.weight"]))]

    def predict(name: str) -> Prediction:
        phi = tensors[f"phi.{name}"]
        return Prediction.of(parts.predict(done, phi, recipe.predict), names)

    outside = [k.removeprefix("phi.") for k in tensors if k.startswith("phi.")]
    outside = {name: predict(name) for name in outside if name not in sets}
    result = score(predict("test"), sets["test"].labels, outside).to_json()
    result |= {"kl": facts["kl"], "finalizer": report, "environment": environment()}
    return result


def table(out: Path) -> None:
    """Print a Markdown table per task: a row for each variant and finaliser."""
    cells: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = defaultdict(dict)
    for file in sorted(out.glob("*/seed*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        key = cell["variant"], cell["row"]
        cells[cell["task"]].setdefault(key, []).append(cell)
    for task, rows in cells.items():
        print(f"\n### {task}\n")
        print("| trained with | finaliser | seeds | acc | NLL | ECE | OOD max-prob | OOD MI | T |")
        print("|" + "---|" * 9)
        order = [(v, f) for v in VARIANTS for f in FINALISERS if (v, f) in rows]
        for variant, row in order:
            found = rows[variant, row]
            outside = next(iter(found[0]["ood"]))
            numbers = [spread([c[key] for c in found]) for key in ("accuracy", "nll", "ece")]
            numbers += [
                spread([c["ood"][outside][key] for c in found])
                for key in ("auroc_max_prob", "auroc_mutual_information")
            ]
            heat = fmean(c["finalizer"]["temperature"] for c in found)
            print(f"| {variant} | {row} | {len(found)} | {' | '.join(numbers)} | {heat:.2f} |")


def main() -> None:
    """Compute all cells that are not there yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learnt", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/posteriors"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in sorted(arguments.learnt.glob("*/seed*-*")) if arguments.learnt else ():
        task, (seed, _, variant) = folder.parent.name, folder.name.partition("-")
        for row, config in FINALISERS.items():
            slug = "".join(c if c.isalnum() else "_" for c in row.lower())
            file = arguments.out / task / f"{seed}-{variant}-{slug}.json"
            if file.is_file() or (task, row) in LEFT_OUT:
                continue
            if variant != "jensen" and row not in SHORT:
                continue
            cell = finish(folder, variant, config)
            write_json(file, {"task": task, "seed": seed, "variant": variant, "row": row, **cell})
            print(f"{task} {seed} {variant} {row}: nll {cell['nll']:.4f}", flush=True)
    if arguments.table:
        table(arguments.out)


if __name__ == "__main__":
    main()
