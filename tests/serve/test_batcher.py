"""Which rows share a pass, when it starts, and what happens to those that cannot be answered."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from bayestune.data import Encoded, Example
from bayestune.errors import ConfigError, NumericsError
from bayestune.serve.batcher import Batcher, FullError
from bayestune.serve.limits import Limits
from bayestune.serve.rows import Asked, Row

pytestmark = pytest.mark.anyio


class Passes:
    """Stands for the models: remembers each pass, and may be held back."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: list[tuple[str, list[int]]] = []
        self.waits: list[float] = []
        self.go = threading.Event()
        self.go.set()
        self.seconds = seconds

    def __call__(self, run: str, rows: Any) -> Any:
        self.go.wait(10)
        time.sleep(self.seconds)
        self.seen.append((run, [row.length for row in rows]))
        return [
            NumericsError("not a number") if row.length == 13 else {"length": row.length}
            for row in rows
        ]

    def passed(self, run: str, rows: Any, waited: Any, took: float) -> None:
        self.waits += waited


def row(length: int) -> Row:
    loop = asyncio.get_running_loop()
    encoded = Encoded([[1] * length], None, 0)
    return Row(Example(length, "x"), encoded, Asked(), loop.time(), loop.create_future())


@pytest.fixture
async def start():
    started = []

    def make(passes: Passes, **limits: Any) -> Batcher:
        batcher = Batcher(passes, Limits(**limits), passes)
        batcher.start()
        started.append((batcher, passes))
        return batcher

    yield make
    for batcher, passes in started:
        passes.go.set()
        await batcher.stop()


async def test_rows_that_come_together_share_a_pass(start) -> None:
    passes = Passes()
    batcher = start(passes, wait=0.2)
    rows = [row(3) for _ in range(5)]
    batcher.put("a", rows[:2])
    await asyncio.sleep(0.02)
    batcher.put("a", rows[2:])
    answers = await asyncio.gather(*(r.answer for r in rows))
    assert passes.seen == [("a", [3] * 5)] and answers == [{"length": 3}] * 5
    assert (
        max(passes.waits) >= 0.19 and min(passes.waits) >= 0.15
    )  # nobody before the oldest's time


async def test_a_full_pass_does_not_wait(start) -> None:
    passes = Passes()
    batcher = start(passes, wait=30, batch_rows=4)
    rows = [row(3) for _ in range(4)]
    batcher.put("a", rows)
    await asyncio.wait_for(asyncio.gather(*(r.answer for r in rows)), 5)
    assert passes.seen == [("a", [3] * 4)]


async def test_the_oldest_goes_first_with_those_nearest_in_length(start) -> None:
    passes = Passes()
    passes.go.clear()
    batcher = start(passes, wait=0, batch_rows=3)
    first = row(1)
    batcher.put("a", [first])
    await asyncio.sleep(0.05)  # its pass is being held back
    lengths = [50, 2, 52, 3, 49, 1]
    rows = [row(n) for n in lengths]
    batcher.put("a", rows)
    passes.go.set()
    await asyncio.gather(*(r.answer for r in rows))
    assert [sorted(part) for _, part in passes.seen] == [[1], [49, 50, 52], [1, 2, 3]]


async def test_rows_that_come_much_later_overtake_nobody(start) -> None:
    passes = Passes()
    batcher = start(passes, wait=0.2, batch_rows=2)
    passes.go.clear()
    first = [row(7), row(7)]
    batcher.put("a", first)
    await asyncio.sleep(0.05)  # that pass runs; what follows waits
    rows = [row(length) for length in (3, 9, 5, 5, 3, 3, 3, 3)]
    batcher.put("a", rows)
    passes.go.set()
    await asyncio.gather(*(r.answer for r in first + rows))
    lengths = [lengths for _, lengths in passes.seen]
    assert lengths[1:3] == [[3, 5], [9, 5]], "not the three that came after twice a pass's rows"


async def test_tokens_bound_a_pass_and_a_long_row_goes_alone(start) -> None:
    passes = Passes()
    passes.go.clear()
    batcher = start(passes, wait=0, batch_tokens=100)
    first, rows = row(1), [row(n) for n in (30, 31, 32, 33, 400)]
    batcher.put("a", [first])
    await asyncio.sleep(0.05)
    batcher.put("a", rows)
    passes.go.set()
    await asyncio.gather(*(r.answer for r in rows))
    assert [sorted(part) for _, part in passes.seen] == [[1], [30, 31, 32], [33], [400]]
    for _, part in passes.seen:
        assert len(part) == 1 or len(part) * max(part) <= 100


async def test_runs_do_not_share_and_none_starves(start) -> None:
    passes = Passes()
    passes.go.clear()
    batcher = start(passes, wait=0)
    rows = [row(n) for n in (1, 2, 3, 4)]
    for name, one in zip("aaba", rows, strict=True):
        batcher.put(name, [one])
        await asyncio.sleep(0.02)
    passes.go.set()
    await asyncio.gather(*(r.answer for r in rows))
    assert passes.seen == [("a", [1]), ("a", [2, 4]), ("b", [3])]


async def test_a_short_pass_runs_in_the_place_of_the_event_loop(start, monkeypatch) -> None:
    class Threads(Passes):
        def __call__(self, run: str, rows: Any) -> Any:
            self.waits.append(threading.current_thread() is threading.main_thread())
            return super().__call__(run, rows)

        def passed(self, *_: Any) -> None:
            pass

    monkeypatch.setattr("bayestune.serve.batcher._SHORT", 1.0)
    passes = Threads()
    batcher = start(passes, wait=0, batch_rows=4)
    for seconds, length in ((0.01, 5), (0.01, 5), (0.01, 5), (0.01, 500)):
        passes.seconds, one = seconds, row(length)
        batcher.put("a", [one])
        await one.answer
    # Before the first one nothing is known; after the third, 500 tokens may well take 1 s.
    assert passes.waits == [False, True, True, False]


async def test_one_row_fails_for_itself(start) -> None:
    batcher = start(Passes())
    rows = [row(n) for n in (12, 13, 14)]
    batcher.put("a", rows)
    found = await asyncio.gather(*(r.answer for r in rows), return_exceptions=True)
    assert found[0] == {"length": 12} and found[2] == {"length": 14}
    assert isinstance(found[1], NumericsError)


async def test_a_pass_that_dies_leaves_the_next_ones(start, caplog) -> None:
    class Dying(Passes):
        def __call__(self, run: str, rows: Any) -> Any:
            if rows[0].length == 5:
                raise RuntimeError("out of memory")
            return super().__call__(run, rows)

    batcher, bad, fine = start(Dying()), row(5), row(3)
    batcher.put("a", [bad])
    with pytest.raises(RuntimeError, match="out of memory"):
        await bad.answer
    assert "a pass of 1 rows through a failed" in caplog.text
    batcher.put("a", [fine])
    assert await fine.answer == {"length": 3}


async def test_more_rows_than_may_wait_are_refused_and_given_up_ones_make_room(start) -> None:
    passes = Passes(seconds=0.01)
    passes.go.clear()
    batcher = start(passes, wait=0, queue_rows=4, request_rows=4, batch_rows=2)
    first = row(1)
    batcher.put("a", [first])
    await asyncio.sleep(0.05)
    rows = [row(2) for _ in range(4)]
    with batcher.reserve(3):  # those of another request are being read
        batcher.put("a", rows[:1])
        assert batcher.queued == 4
        with pytest.raises(FullError) as refused, batcher.reserve(1):
            pass
        batcher.put("a", rows[1:])
    assert batcher.queued == 4 and batcher.full() == refused.value.retry >= 1
    batcher.drop("a", rows[:2])
    assert batcher.queued == 2 and batcher.full() is None
    for _ in range(
        100
    ):  # requests like these would find no room: so much is known before they are read
        with suppress(FullError), batcher.reserve(3):
            pass
    assert batcher.full() is not None
    passes.go.set()
    await asyncio.gather(*(r.answer for r in rows[2:]))
    assert passes.seen == [("a", [1]), ("a", [2, 2])]  # the two that nobody waits for took no place


async def test_rows_that_would_be_answered_too_late_are_refused_at_once(start) -> None:
    passes = Passes(seconds=0.1)
    batcher = start(passes, wait=0, batch_rows=2, answer_seconds=2)
    rows = [row(2) for _ in range(7)]
    batcher.put("a", rows[:1])
    await rows[0].answer
    with batcher.reserve(200):  # ten rows a second, but a pass by itself tells nothing
        pass
    batcher.put("a", rows[1:])
    await asyncio.gather(*(r.answer for r in rows))
    passes.go.clear()
    with batcher.reserve(200):  # where nobody waits before it, any request is tried
        pass
    held = [row(2) for _ in range(12)]
    batcher.put("a", held)
    await asyncio.sleep(0.05)
    assert batcher.full() is None and batcher.queued == 10
    with pytest.raises(FullError) as refused, batcher.reserve(100):
        pass  # of 20 rows a second at most 40 are answered in 2 s
    assert refused.value.retry == 1.0
    passes.go.set()
    await asyncio.gather(*(r.answer for r in held))


async def test_stop_cancels_what_waits() -> None:
    passes = Passes()
    passes.go.clear()
    batcher = Batcher(passes, Limits(wait=0), passes)
    batcher.start()
    first, second = row(1), row(2)
    batcher.put("a", [first])
    await asyncio.sleep(0.05)
    batcher.put("a", [second])
    passes.go.set()
    await batcher.stop()
    assert second.answer.cancelled()


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"batch_rows": 0}, "batch_rows"), ({"queue_rows": 5, "request_rows": 6}, "never find room")],
)
async def test_limits_that_make_no_sense_are_refused(limits, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(**limits)
