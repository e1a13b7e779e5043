"""SIGTERM ends a verb as Ctrl-C does: what it has is kept, what is half written goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def _terminate(*_: Any) -> None:
    # Once: a second one would interrupt the tidying up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at a SIGTERM that nobody else is there for."""
    try:
        ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if ours:
            signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # only the main thread hears of signals
        ours = False
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def by_the_signal() -> None:
    """Let SIGTERM end the process itself, as it does where nothing is to be kept."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
