"""Interleaved timings, peaks of memory, and the row that comes of them."""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what is measured, against what.
        value: the number; None where it was not measured.
        unit: ``×``, ``s`` or ``MB``.
        target: bound that ``value`` should keep, with its direction (``≤ 1.02``); or nothing.
        limit: what keeps it from being better.
        detail: other numbers of the same run.
    """

    what: str
    value: float | None
    unit: str
    target: str = ""
    limit: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is kept; None without one, or without a number."""
        if self.value is None or not self.target:
            return None
        sign, bound = self.target.split()[:2]
        return self.value <= float(bound) if sign == "≤" else self.value >= float(bound)


def interleaved(
    runs: Mapping[str, Callable[[], Any]], repeats: int, device: str, warm: int = 1
) -> dict[str, list[float]]:
    """Return seconds of every run, taken in turns whose order is drawn anew in each repeat."""
    rng, times = random.Random(0), {name: list[float]() for name in runs}
    for repeat in range(-warm, repeats):
        for name in rng.sample(list(runs), len(runs)):
            seconds = timed(runs[name], device)
            if repeat >= 0:
                times[name].append(seconds)
    return times


def timed(run: Callable[[], Any], device: str) -> float:
    """Return the seconds of one run."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    """Return the median over the repeats of the quotient of two runs."""
    pairs = zip(times[over], times[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median seconds of every run."""
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise(device: str) -> None:
    """Wait for what a GPU still does."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return the megabytes held before a run, and their peak within it.

    On a CPU they are the process's resident ones (Linux), what libraries hold included.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return before / 1e6, torch.cuda.max_memory_allocated() / 1e6
    ctypes.CDLL(None).malloc_trim(0)  # else the run would take what earlier ones gave back
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _resident("VmRSS")
    run()
    return before, _resident("VmHWM")


def _resident(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1000
    raise RuntimeError(f"/proc/self/status has no {name}")
