"""Progress of long steps: a bar on a terminal, a plain line now and then elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Seconds between two plain lines where there is no terminal.
INTERVAL = 10.0


class Advance(Protocol):
    """Report that ``count`` more units are done, with a few words on the state."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


#: ``progress(label, total)`` is a context that yields an `Advance`.
Progress = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:
    """Report nothing."""
    yield lambda count=1, note="": None


@contextmanager
def shown(label: str, total: int) -> Iterator[Advance]:
    """Report on stderr: a bar with the time left on a terminal, else a line every ten seconds."""
    with (_bar if sys.stderr.isatty() else _lines)(label, total) as advance:
        yield advance


@contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, note="")

        def advance(count: int = 1, note: str = "") -> None:
            bars.advance(task, count)
            if note:
                bars.update(task, note=note)

        yield advance


@contextmanager
def _lines(label: str, total: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= INTERVAL:
            last = now
            left = f", {(now - start) / done * (total - done):.0f} s left" if done else ""
            print(f"{label}: {done}/{total}{left} {note}".rstrip(), file=sys.stderr)

    yield advance
    seconds = time.monotonic() - start
    if seconds >= 1:
        print(f"{label}: {done}/{total} in {seconds:.1f} s", file=sys.stderr)
