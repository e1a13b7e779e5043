"""Dynamic batching: rows that wait share a pass with others of their run and about their length."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from bayestune.errors import BayestuneError
from bayestune.serve.limits import Limits
from bayestune.serve.rows import Row

logger = logging.getLogger(__name__)

#: Passes' worth of the oldest rows among which the companions of the oldest are chosen.
_CHOICE = 2

#: Answers the rows of one pass, in a thread.
Answer = Callable[[str, Sequence[Row]], "list[dict[str, Any] | BayestuneError]"]


class Watch(Protocol):
    """Told of every pass."""

    def passed(self, run: str, rows: Sequence[Row], waited: Sequence[float], took: float) -> None:
        """Count a pass."""
        ...


class FullError(Exception):
    """There is no room for these rows now.

    Args:
        retry: seconds after which there may be.
    """

    def __init__(self, retry: float) -> None:
        super().__init__(f"no room; in {retry:.1f} s there may be")
        self.retry = retry


class Batcher:
    """Rows in, answers out, one pass at a time.

    The row that has waited longest is always of the next pass; the places beside it go to those of
    the next oldest of its run that are nearest in length, so that little of a pass is padding and
    nobody starves: who comes later than those overtakes none of them. A pass starts as soon as it
    is full, or its oldest row has waited for ``limits.wait``: while one pass runs, the next one
    fills.

    Everything but the passes themselves happens in one event loop.

    Args:
        answer: answers the rows of one pass.
        limits: sizes and times.
        watch: told of every pass.
    """

    def __init__(self, answer: Answer, limits: Limits, watch: Watch) -> None:
        self._answer = answer
        self._limits = limits
        self._watch = watch
        self._waiting: dict[str, list[Row]] = {}
        self._changed = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="bayestune-pass")
        #: Tokenisers are not made for several threads at once.
        self.reading = ThreadPoolExecutor(1, thread_name_prefix="bayestune-read")
        self._task: asyncio.Task[None] | None = None
        self._rate = 0.0  # rows per second of passes, a running mean

    @property
    def queued(self) -> int:
        """How many rows wait; those that nobody waits for any more do not count."""
        return sum(not row.answer.done() for rows in self._waiting.values() for row in rows)

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; rows that still wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for rows in self._waiting.values():
            for row in rows:
                row.answer.cancel()
        self._waiting.clear()
        self._worker.shutdown(wait=True)
        self.reading.shutdown(wait=True)

    def full(self) -> float | None:
        """Return the seconds after which there may be room; None where there is for one row."""
        try:
            self.require_room(1)
        except FullError as error:
            return error.retry
        return None

    def require_room(self, count: int) -> None:
        """Raise FullError where ``count`` more rows would be too many."""
        queued = self.queued
        if queued + count > self._limits.queue_rows:
            over = queued + count - self._limits.queue_rows
            raise FullError(max(1.0, over / self._rate) if self._rate else 1.0)

    def put(self, run: str, rows: Sequence[Row]) -> None:
        """Let rows wait for their pass.

        Raises:
            FullError: if there is no room for all of them.
        """
        self.require_room(len(rows))
        self._waiting.setdefault(run, []).extend(rows)
        self._changed.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            run = self._oldest()
            if run is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._let_fill(run)
            rows = self._take(run)
            if not rows:
                continue
            started = loop.time()
            try:
                answers = await loop.run_in_executor(self._worker, self._answer, run, rows)
            except Exception as error:  # whatever a pass dies of, the next one is not to
                logger.exception("a pass of %d rows through %s failed", len(rows), run)
                answers = [error] * len(rows)
            took = loop.time() - started
            self._rate += 0.2 * (len(rows) / max(took, 1e-6) - self._rate)
            self._watch.passed(run, rows, [started - row.arrived for row in rows], took)
            for row, found in zip(rows, answers, strict=True):
                if row.answer.done():  # its request has been given up
                    continue
                if isinstance(found, Exception):
                    row.answer.set_exception(found)
                else:
                    row.answer.set_result(found)

    def _oldest(self) -> str | None:
        """Return the run of the row that has waited longest, dropping what nobody waits for."""
        for run, rows in list(self._waiting.items()):
            rows[:] = [row for row in rows if not row.answer.done()]
            if not rows:
                del self._waiting[run]
        if not self._waiting:
            return None
        return min(self._waiting, key=lambda run: self._waiting[run][0].arrived)

    async def _let_fill(self, run: str) -> None:
        """Wait until the pass is full or its oldest row has waited long enough."""
        loop, rows = asyncio.get_running_loop(), self._waiting[run]
        until = rows[0].arrived + self._limits.wait
        while len(rows) < self._limits.batch_rows and (left := until - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self, run: str) -> list[Row]:
        """Take the rows of the next pass out of the queue."""
        rows = [row for row in self._waiting.get(run, ()) if not row.answer.done()]
        if not rows:
            return []
        oldest = rows[0].length
        # No others: rows that come later would overtake those of rare lengths again and again.
        among = rows[: _CHOICE * self._limits.batch_rows]
        nearest = sorted(among, key=lambda row: (abs(row.length - oldest), row.arrived))
        nearest.remove(rows[0])
        taken, widest = [rows[0]], oldest
        for row in nearest:
            widest = max(widest, row.length)
            tokens = (len(taken) + 1) * widest
            if len(taken) == self._limits.batch_rows or tokens > self._limits.batch_tokens:
                break
            taken.append(row)
        chosen = {id(row) for row in taken}
        self._waiting[run] = [row for row in rows if id(row) not in chosen]
        return taken
