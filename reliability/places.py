"""A tiny backbone, rows and runs for the reliability subjects, and how runs are compared."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # the tiny models and rows of the tests

#: Every line of a cell that tells the time.
_TIMES = ("train_seconds", "predict_seconds")


def prepare(folder: Path) -> dict[str, Path]:
    """Write a tiny Llama and a few rows; return where they lie by name."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked from this one
    import torch
    from tiny_bases import save_llama
    from toy_tasks import topic_rows

    import bayestune.bench
    import bayestune.cli.app
    import bayestune.evaluation  # noqa: F401 - what forked processes need is here once

    torch.set_num_threads(1)
    found = {"base": save_llama(folder / "base")}
    for name, count, seed in (("train", 90, 0), ("val", 30, 1), ("test", 60, 2), ("many", 600, 3)):
        found[name] = folder / f"{name}.jsonl"
        rows = (json.dumps(row) + "\n" for row in topic_rows(count, seed))
        found[name].write_text("".join(rows))
    return found


def small_suite(folder: Path, files: dict[str, Path]) -> Path:
    """Write a benchmark of two rows, one of which starts from the other at two rates."""
    import yaml

    task = {"train": "train.jsonl", "val": "val.jsonl", "test": "test.jsonl"}
    content = {
        "recipe": {
            "model": str(files["base"]),
            "adapter": {"rank": 4, "layers": "top:2"},
            "train": {"epochs": 1, "head_lr": 0.05},
        },
        "rates": {"lora": [1e-3, 2e-3]},
        "seeds": 1,
        "tasks": {"topics": {**task, "train_rows": 30, "test_rows": 20}},
        "rows": {"mle": None, "temperature": {"start": "mle"}},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files under a folder by their relative names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def timeless(files: dict[str, bytes]) -> dict[str, Any]:
    """Return the files of a benchmark without the seconds that its cells took."""
    found: dict[str, Any] = dict(files)
    for name, content in files.items():
        if name.endswith("cell.json"):
            cell = json.loads(content)
            cell["cost"] = {k: v for k, v in cell["cost"].items() if k not in _TIMES}
            found[name] = cell
    return found


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the names of files that one of two folders lacks, or that differ."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
