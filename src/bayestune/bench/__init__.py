"""Benchmarks: methods × tasks × seeds, a cell for each training."""

from __future__ import annotations

from bayestune.bench.cell import Cell, Key, is_written, read, read_arrays
from bayestune.bench.plan import Plan
from bayestune.bench.reading import load_suite, names, read_suite
from bayestune.bench.record import read_plan, write_plan
from bayestune.bench.run import Bench, run
from bayestune.bench.splits import Splits, read_splits
from bayestune.bench.suite import RowSpec, Suite, TaskSpec

__all__ = [
    "Bench",
    "Cell",
    "Key",
    "Plan",
    "RowSpec",
    "Splits",
    "Suite",
    "TaskSpec",
    "is_written",
    "load_suite",
    "names",
    "read",
    "read_arrays",
    "read_plan",
    "read_splits",
    "read_suite",
    "run",
    "write_plan",
]
