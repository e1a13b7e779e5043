"""Progress of long steps: a bar on a terminal, a plain line now and then elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
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
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
    )
    left = _Left(total)
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, note="", left="-:--:--")

        def advance(count: int = 1, note: str = "") -> None:
            # Rich's own guess forgets what is older than 30 s, which one step may take.
            seconds = left.after(count)
            bars.update(task, advance=count)
            if seconds is not None:
                bars.update(task, left=str(timedelta(seconds=round(seconds))))
            if note:
                bars.update(task, note=note)

        yield advance


@contextmanager
def _lines(label: str, total: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    left = _Left(total)

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal last
        seconds, now = left.after(count), time.monotonic()
        if now - last >= INTERVAL:
            last = now
            words = "" if seconds is None else f", {seconds:.0f} s left"
            print(f"{label}: {left.done}/{total}{words} {note}".rstrip(), file=sys.stderr)

    yield advance
    seconds = time.monotonic() - start
    if seconds >= 1:
        print(f"{label}: {left.done}/{total} in {seconds:.1f} s", file=sys.stderr)


class _Left:
    """The time that is left, by what each unit took so far."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._start = self._last = time.monotonic()

    def after(self, count: int) -> float | None:
        """Return the seconds left when ``count`` more units are done, None before the first."""
        now = time.monotonic()
        if count:
            self.done += count
            self._last = now
        if not self.done:
            return None
        each = (self._last - self._start) / self.done
        return max(0.0, each * (self.total - self.done) - (now - self._last))
