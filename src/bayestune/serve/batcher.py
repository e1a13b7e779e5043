"""Dynamic batching: rows that wait share a pass with others of their run and about their length."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from bayestune.errors import BayestuneError
from bayestune.serve.limits import Limits
from bayestune.serve.rows import Row

logger = logging.getLogger(__name__)

#: Passes' worth of the oldest rows among which the companions of the oldest are chosen.
_CHOICE = 2
#: Seconds for which a pass may hold the event loop up, instead of running beside it.
_SHORT = 0.03

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
        self._waiting: dict[str, dict[int, Row]] = {}  # by run and identity, the oldest first
        self._reserved = 0  # rows that are being read
        self._typical = 1.0  # rows of a request, a running mean
        self._changed = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="bayestune-pass")
        #: Tokenisers are not made for several threads at once.
        self.reading = ThreadPoolExecutor(1, thread_name_prefix="bayestune-read")
        self._task: asyncio.Task[None] | None = None
        self._costs: dict[str, float] = {}  # seconds per token of a pass by run, a running minimum
        self._rate = 0.0  # rows per second while others waited, a running mean

    @property
    def queued(self) -> int:
        """How many rows wait, those that are being read among them."""
        return self._reserved + sum(map(len, self._waiting.values()))

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; rows that still wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for rows in self._waiting.values():
            for row in rows.values():
                row.answer.cancel()
        self._waiting.clear()
        self._worker.shutdown(wait=True)
        self.reading.shutdown(wait=True)

    def full(self) -> float | None:
        """Return the seconds after which there may be room; None where there is now.

        Before a request is read its rows are not known: it is taken for one like those before it.
        """
        try:
            self._require_room(self._typical)
        except FullError as error:
            return error.retry
        return None

    def _require_room(self, count: float) -> None:
        queued, room = self.queued, float(self._limits.queue_rows)
        if self._rate and queued:  # what would be answered too late is better refused now
            room = min(room, self._rate * self._limits.answer_seconds)
        if (over := queued + count - room) > 0:
            raise FullError(max(1.0, min(over, queued) / self._rate) if self._rate else 1.0)

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Keep room for rows while they are read; they are put before the block ends.

        Raises:
            FullError: if there is no room for all of them, or their answers would come too late.
        """
        self._typical += 0.05 * (count - self._typical)
        self._require_room(count)
        self._reserved += count
        try:
            yield
        finally:
            self._reserved -= count

    def put(self, run: str, rows: Sequence[Row]) -> None:
        """Let rows wait for their pass, in the room that is reserved for them."""
        self._waiting.setdefault(run, {}).update((id(row), row) for row in rows)
        self._changed.set()

    def drop(self, run: str, rows: Sequence[Row]) -> None:
        """Give up rows: those that still wait take no place in a pass."""
        waiting = self._waiting.get(run, {})
        for row in rows:
            row.answer.cancel()
            waiting.pop(id(row), None)

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
            more, started = bool(self._waiting[run]), loop.time()
            try:
                answers = await self._pass(run, rows)
            except Exception as error:  # whatever a pass dies of, the next one is not to
                logger.exception("a pass of %d rows through %s failed", len(rows), run)
                answers = [error] * len(rows)
            took = loop.time() - started
            rate = len(rows) / max(took, 1e-6)
            if more or 0 < self._rate < rate:  # a pass with room left could have answered more
                self._rate += (0.2 if self._rate else 1.0) * (rate - self._rate)
            self._watch.passed(run, rows, [started - row.arrived for row in rows], took)
            for row, found in zip(rows, answers, strict=True):
                if row.answer.done():  # its request has been given up
                    continue
                if isinstance(found, Exception):
                    row.answer.set_exception(found)
                else:
                    row.answer.set_result(found)
            await asyncio.sleep(0)  # requests and answers have their turn, too

    async def _pass(self, run: str, rows: Sequence[Row]) -> list[dict[str, Any] | BayestuneError]:
        """Answer the rows of a pass: a long one beside the event loop, a short one in its place.

        Two threads that both have Python to run hand the interpreter to and fro at every operation
        of the pass. On a busy machine that takes many times as long as a short pass itself.
        """
        loop, tokens = asyncio.get_running_loop(), len(rows) * max(row.length for row in rows)
        started, cost = loop.time(), self._costs.get(run, math.inf)
        if tokens * cost < _SHORT:
            answers = self._answer(run, rows)
        else:
            answers = await loop.run_in_executor(self._worker, self._answer, run, rows)
        self._costs[run] = min((loop.time() - started) / tokens, 1.1 * cost)
        return answers

    def _oldest(self) -> str | None:
        """Return the run of the row that has waited longest."""
        self._waiting = {run: rows for run, rows in self._waiting.items() if rows}
        oldest = {run: next(iter(rows.values())) for run, rows in self._waiting.items()}
        return min(oldest, key=lambda run: oldest[run].arrived, default=None)

    async def _let_fill(self, run: str) -> None:
        """Wait until the pass is full or its oldest row has waited long enough."""
        loop, rows = asyncio.get_running_loop(), self._waiting[run]
        until = next(iter(rows.values())).arrived + self._limits.wait
        while len(rows) < self._limits.batch_rows and (left := until - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self, run: str) -> list[Row]:
        """Take the rows of the next pass out of the queue."""
        waiting = self._waiting[run]
        # No others: rows that come later would overtake those of rare lengths again and again.
        among = list(itertools.islice(waiting.values(), _CHOICE * self._limits.batch_rows))
        if not among:  # all were given up meanwhile
            return []
        first, *others = among
        taken, widest = [first], first.length
        for row in sorted(others, key=lambda row: (abs(row.length - first.length), row.arrived)):
            widest = max(widest, row.length)
            tokens = (len(taken) + 1) * widest
            if len(taken) == self._limits.batch_rows or tokens > self._limits.batch_tokens:
                break
            taken.append(row)
        for row in taken:
            del waiting[id(row)]
        return taken
