"""Bad input of every kind: ``python -m reliability fuzz``.

Of every case holds: it is right, or refused in words (a BayestuneError, exit status 2, a 4xx); no
traceback, no hang, no half-written file, nothing read or written outside, no other model.
``python -m reliability.fuzz CASE``, with a case that a run printed, runs it alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging as quiet

from reliability.cases import FAMILIES
from reliability.cases.harness import Failure, attempt, sweep
from reliability.cases.world import World

#: Cases by family and budget; seconds that one may take.
CASES = {
    "ci": dict(zip(FAMILIES, (130, 80, 70, 90, 45, 15, 65, 8), strict=True)),
    "full": dict(zip(FAMILIES, (3000, 1500, 1500, 1500, 1500, 500, 1200, 300), strict=True)),
}
SECONDS = 20.0
SEED = 0


def run(budget: str) -> dict[str, int | float | str]:
    """Run the cases of a budget, "ci" or "full", and count how they ended."""
    totals, failures = Counter[str](), list[Failure]()
    counts: dict[str, int | float | str] = {}
    with tempfile.TemporaryDirectory() as place:
        world = _world(Path(place))
        for kind, cases in CASES[budget].items():
            family = kind(_folder(place, kind.name), world)
            found, failed = sweep(family, cases, SEED, SECONDS)
            getattr(family, "close", lambda: None)()
            totals += found
            failures += failed
            counts[f"cases of {kind.title}"] = cases
    counts |= {"cases": totals.total(), "as it should be": totals["accepted"]}
    counts["refused in words"] = totals["refused"]
    counts["failed"] = "; ".join(f"{one.case}: {one.problem}" for one in failures) or 0
    return counts


def replay(case: str) -> Failure | None:
    """Run one case again, by its name, and return how it fails, with its stack."""
    name, seed = case.split("/", 1)
    kind = next(kind for kind in FAMILIES if kind.name == name)
    with tempfile.TemporaryDirectory() as place:
        return attempt(kind(_folder(place, name), _world(Path(place))), seed, SECONDS)[1]


def _world(place: Path) -> World:
    torch.set_num_threads(1)
    quiet.disable_progress_bar()
    (place / "world").mkdir()
    return World.make(place / "world")


def _folder(place: str, name: str) -> Path:
    folder = Path(place) / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    failure = replay(sys.argv[1])
    print("it holds" if failure is None else f"{failure.problem}\n{failure.stack}")
    sys.exit(failure is not None)
