"""How long the package takes to import and the command line to help."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.speed.measure import Row

_IMPORT = "import time; t = time.perf_counter(); import bayestune; print(time.perf_counter() - t)"


def run(device: str, base: str, repeats: int) -> list[Row]:
    """Measure processes of their own; neither device nor base matters."""
    imports, helps, bare = [], [], []
    for _ in range(repeats + 1):
        imports.append(float(_python("-c", _IMPORT)[0]))
        helps.append(_python("-m", "bayestune.cli", "--help")[1])
        bare.append(_python("-c", "pass")[1])
    seconds = {"python": statistics.median(bare[1:])}
    return [
        Row(
            "import bayestune",
            statistics.median(imports[1:]),
            "s",
            "≤ 0.3",
            "no torch yet",
            seconds,
        ),
        Row(
            "bayestune --help, the whole process",
            statistics.median(helps[1:]),
            "s",
            "≤ 1",
            "the interpreter and typer",
            seconds,
        ),
    ]


def _python(*arguments: str) -> tuple[str, float]:
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return ended.stdout, time.perf_counter() - started
