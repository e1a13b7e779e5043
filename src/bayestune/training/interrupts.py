"""Signals that wait until a step is complete, so that the state reached can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Ctrl-C, and what a scheduler sends before it kills.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Held:
    """The signal that has come, and the handler that it is for."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._come: tuple[int, FrameType | None] | None = None

    @property
    def come(self) -> bool:
        """Whether a signal waits."""
        return self._come is not None

    def hold(self, number: int, frame: FrameType | None) -> None:
        """Keep the first signal; a second one is delivered at once."""
        if self._come is not None:
            self.handlers[number](number, frame)
        self._come = number, frame

    def deliver(self) -> None:
        """Give the signal to the handler that it is for, which raises."""
        if self._come is not None:
            number, frame = self._come
            self.handlers[number](number, frame)


@contextmanager
def held() -> Iterator[Held]:
    """Hold back the signals that would raise; those left to the system still end the process.

    Outside the main thread, which alone hears of signals, nothing is held.
    """
    signals = Held()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    for number in _SIGNALS:
        if callable(handler := signal.getsignal(number)):
            signals.handlers[number] = handler
            signal.signal(number, signals.hold)
    try:
        yield signals
    finally:
        for number, handler in signals.handlers.items():
            signal.signal(number, handler)
