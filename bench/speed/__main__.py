"""``python -m bench.speed``: measure every target, each in a process of its own, and tabulate.

    python -m bench.speed [TARGET ...] [--device cpu|cuda] [--repeats 5] [--out DIR] [--table]

Results go to one file per target and device in ``docs/results/speed``, from which ``--table``
writes ``docs/results/speed.md``. Rows of a device on which nobody has run them are marked as not
measured. The exit status is 1 where a target was missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.speed import table

from bayestune.files import write_json

HERE = Path(__file__).parents[2] / "docs" / "results" / "speed"
TARGETS = (
    "predictive",
    "step",
    "seven_billion",
    "stiefel",
    "end_to_end",
    "throughput",
    "draws",
    "refit",
    "many_classes",
    "starting",
    "growth",
)
#: What only one kind of device can show.
ONLY = {"seven_billion": "cuda", "starting": "cpu"}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument(
        "--table", action="store_true", help="only write the table of what is there"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target is called {', '.join(sorted(unknown))}: {', '.join(TARGETS)}")
    if given.here:
        print(json.dumps(_measured(given.targets[0], given)))
        return
    if given.table:
        table.write(given.out.with_suffix(".md"), given.out, TARGETS, ONLY)
        return
    sys.exit(_all(given))


def _all(given: argparse.Namespace) -> int:
    missed = 0
    for name in given.targets or TARGETS:
        if ONLY.get(name, given.device) != given.device:
            continue
        found = _apart(name, given)
        given.out.mkdir(parents=True, exist_ok=True)
        write_json(given.out / f"{name}.{given.device}.json", found)
        for row in found["rows"]:
            print(table.sentence(row), flush=True)
            missed += row["met"] is False
    return int(missed > 0)


def _apart(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure a target in a process of its own, which begins with an empty memory."""
    options: Iterable[str] = (
        *("--device", given.device, "--base", given.base, "--here"),
        *("--repeats", str(given.repeats), "--threads", str(given.threads)),
    )
    ended = subprocess.run(
        [sys.executable, "-m", "bench.speed", name, *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def _measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from bayestune.training.run import environment

    torch.set_num_threads(given.threads)
    rows = importlib.import_module(f"bench.speed.{name}").run(
        given.device, given.base, given.repeats
    )
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    return {
        "command": f"python -m bench.speed {name} --device {given.device} --base {given.base} "
        f"--repeats {given.repeats} --threads {given.threads}",
        "device": device,
        "environment": environment(),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }


if __name__ == "__main__":
    main()
