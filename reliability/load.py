"""The server beyond its capacity: ``python -m reliability load``.

The server's own process on a tiny backbone, at four times the rows per second that it was measured
to answer, over a thousand connections, beside slow clients and clients that hang up; then SIGTERM
in the middle of work. Every answer is compared with the offline one. Needs Linux.
"""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import tempfile
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliability.cases.world import World
from reliability.server import Server, ask, head, read_answer

#: By budget: seconds of load, of measuring the capacity, connections that send all the time.
SIZES = {"ci": (3.0, 0.6, 150), "full": (300.0, 10.0, 1000)}
OVERLOAD = 4
#: Rows of a request, and texts that are asked for.
MOST_ROWS, TEXTS = 8, 400
WITHIN = 1e-5
#: By which resident memory may have grown, in MB, after any number of requests.
GROWTH = 64
#: What the page calls the counts, in its order.
WORDS = {
    "wrong": "wrong answers",
    "lost": "accepted requests that were lost",
    "requests": "requests waited for",
    "accepted": "requests answered",
    "refused": "requests refused (429)",
    "late": "requests given up by the server (503)",
    "asked_again": "requests asked again after a silent connection was closed",
    "aborted": "requests given up by their clients",
    "slow_closed": "slow clients cut off or refused",
    "connections": "connections opened at once, beside as many that send all the time",
    "drained": "requests answered after SIGTERM",
    "seconds": "seconds of load",
    "capacity": "rows answered per second by 32 clients, before",
    "offered_rate": "rows offered per second",
    "rate": "rows answered per second",
    "p50": "p50 of an answer, ms",
    "p99": "p99 of an answer, ms",
    "before": "resident memory before, MB",
    "after": "resident memory after, MB",
    "drain": "seconds from SIGTERM to the end",
}


@dataclass
class Tally:
    """What became of requests; `lost` and `wrong` must stay 0.

    Attributes:
        counts: by kind.
        seconds: from sending to the whole answer, of those that were accepted.
    """

    offline: dict[str, dict[str, float]]
    counts: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, kind: str, count: int = 1) -> None:
        """Count something."""
        self.counts[kind] = self.counts.get(kind, 0) + count

    def problem(self, kind: str, what: str) -> None:
        """Count what must not be, and keep a few of them in words."""
        self.add(kind)
        self.problems = [*self.problems, f"{kind}: {what}"][:5]

    def judge(self, texts: list[str], status: int, answer: Any) -> None:
        """Count an answer, and compare each of its numbers with the offline ones."""
        self.add({200: "accepted", 429: "refused", 503: "late"}.get(status, f"status_{status}"))
        if status not in (200, 429, 503):
            self.problem("wrong", f"{status}: {str(answer)[:200]}")
        if status != 200:
            return
        lines = answer["predictions"]
        self.add("rows", len(lines))
        if len(lines) != len(texts):
            self.problem("wrong", f"{len(lines)} answers to {len(texts)} texts")
        for text, line in zip(texts, lines, strict=False):
            off = max(abs(p - line["probs"][name]) for name, p in self.offline[text].items())
            if not off <= WITHIN:
                self.problem("wrong", f"{text!r} is off by {off}")


async def exchange(port: int, texts: list[str], tally: Tally, stream: Any = None) -> Any:
    """Ask on a connection and judge the answer; return the connection, for the next one."""
    tally.add("requests")
    started, reused = time.monotonic(), stream is not None
    try:
        stream = stream or await asyncio.open_connection("127.0.0.1", port)
        status, answer = await ask(*stream, texts)
    except (OSError, asyncio.IncompleteReadError) as error:
        await close(stream)
        if reused and not getattr(error, "partial", b""):
            # Closed for its silence while the request was on its way: HTTP has clients ask again.
            tally.add("asked_again")
            return await exchange(port, texts, tally)
        tally.problem("lost", f"{type(error).__name__} after {time.monotonic() - started:.1f} s")
        return None
    if status == 200:
        tally.seconds.append(time.monotonic() - started)
    tally.judge(texts, status, answer)
    return stream


async def closed_loop(port: int, texts: list[str], tally: Tally, until: float) -> None:
    """Ask on one connection, as soon as the answer before is there."""
    stream = None
    while time.monotonic() < until:
        asked = random.choices(texts, k=random.randint(1, MOST_ROWS))
        stream = await exchange(port, asked, tally, stream)
    await close(stream)


async def sender(
    port: int, texts: list[str], tally: Tally, rows: float, until: float, seed: int
) -> None:
    """Ask for so many rows per second, whatever comes of it; some requests are given up."""
    rng, stream, due = random.Random(seed), None, time.monotonic() + random.random()
    while time.monotonic() < until:
        asked = rng.choices(texts, k=rng.randint(1, MOST_ROWS))
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due + len(asked) / rows, time.monotonic() - 1.0)  # a backlog of a second at most
        tally.add("offered", len(asked))
        if rng.random() < 0.03:
            await abort(port, asked, rng)
            tally.add("aborted")
        else:
            stream = await exchange(port, asked, tally, stream)
    await close(stream)


async def abort(port: int, texts: list[str], rng: random.Random) -> None:
    """Hang up in the middle of a request, or before its answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    data = head(texts)
    writer.write(data[: rng.choice((len(data), rng.randrange(len(data))))])
    await writer.drain()
    await asyncio.sleep(rng.choice((0.0, 0.01)))
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def dripping(port: int, texts: list[str], tally: Tally, until: float, whole: int) -> None:
    """Send a request a byte at a time, head or body; the server must close, or say 408."""
    data = head(texts)
    end = data.index(b"\r\n\r\n") + 4
    start = end if whole else 0
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data[:start])
            for byte in data[start:-1]:
                writer.write(bytes([byte]))
                await writer.drain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 1.0)
                    break
                if time.monotonic() > until:
                    break
            if time.monotonic() < until:
                tally.add("slow_closed")
                if time.monotonic() - began > 60:
                    tally.problem("wrong", "a slow client was waited for")
            await close((reader, writer))
        except OSError:
            tally.add("slow_closed")


async def crowd(port: int, texts: list[str], tally: Tally, count: int) -> None:
    """Open many connections at once, then ask on all of them at once."""
    opened = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", port) for _ in range(count))
    )
    tally.add("connections", len(opened))
    streams = await asyncio.gather(
        *(exchange(port, [random.choice(texts)], tally, stream) for stream in opened)
    )
    await asyncio.gather(*(close(stream) for stream in streams))


async def drain(server: Server, texts: list[str], tally: Tally) -> float:
    """Send SIGTERM while requests are being answered; return the seconds until it has ended."""
    streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(60)]
    for _, writer in streams:
        writer.write(head(texts[:MOST_ROWS]))
    while await server.metric("bayestune_queue_rows") < MOST_ROWS * len(streams) // 2:
        await asyncio.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    for reader, writer in streams:
        try:
            tally.judge(texts[:MOST_ROWS], *await read_answer(reader))
            tally.add("drained")
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.problem("lost", f"{type(error).__name__} on SIGTERM")
        await close((reader, writer))
    if (status := await asyncio.to_thread(server.process.wait, 90)) != -signal.SIGTERM:
        tally.problem("wrong", f"the server ended with {status}")
    return time.monotonic() - began


async def close(stream: Any) -> None:
    """Close a connection, if it is one."""
    if stream is not None:
        stream[1].close()
        with suppress(OSError):
            await stream[1].wait_closed()


async def together(tasks: Iterable[Awaitable[None]]) -> None:
    """Wait for all."""
    await asyncio.gather(*tasks)


def run(budget: str) -> dict[str, int | float | str]:
    """Load the server with a budget, "ci" or "full", and count what became of the requests."""
    with tempfile.TemporaryDirectory() as place:
        world = World.make(Path(place))
        texts = world.texts(TEXTS)
        found = world.model.predict(texts, batch_size=1)
        offline = [dict(zip(found.names, probs, strict=True)) for probs in found.probs.tolist()]
        tally = Tally(dict(zip(texts, offline, strict=True)))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
        with Server(world.run) as server:
            return asyncio.run(_load(server, texts, tally, *SIZES[budget]))


async def _load(
    server: Server, texts: list[str], tally: Tally, seconds: float, warm: float, connections: int
) -> dict[str, int | float | str]:
    port, measured = server.port, Tally(tally.offline)
    for length in (warm / 2, warm):  # the first one warms everything up
        measured.counts.clear()
        until = time.monotonic() + length
        await together(closed_loop(port, texts, measured, until) for _ in range(32))
    capacity = measured.counts["rows"] / warm
    before, began = server.resident(), time.monotonic()
    until, each = began + seconds, OVERLOAD * capacity / connections
    tasks = [sender(port, texts, tally, each, until, seed) for seed in range(connections)]
    tasks += [dripping(port, texts[:1], tally, until, whole) for whole in (0, 1) for _ in range(10)]
    tasks.append(crowd(port, texts, tally, connections))
    await together(tasks)
    spent = time.monotonic() - began
    await asyncio.sleep(1.0)
    after = server.resident()
    if after > before + GROWTH:
        tally.problem("wrong", f"{after - before:.0f} MB more than before")
    rate, offered = tally.counts["rows"] / spent, tally.counts["offered"] / spent
    drained = await drain(server, texts, tally)
    late = sorted(tally.seconds)
    found: dict[str, int | float] = {"wrong": 0, "lost": 0, **tally.counts}
    found |= {f"p{q}": round(1000 * late[int(q / 100 * (len(late) - 1))]) for q in (50, 99)}
    found |= {"capacity": round(capacity), "rate": round(rate), "offered_rate": round(offered)}
    found |= {"before": round(before), "after": round(after), "seconds": round(spent)}
    found |= {"drain": round(drained, 1)}
    counts = {words: found[name] for name, words in WORDS.items() if name in found}
    problems = (*tally.problems, *measured.problems)
    return counts | ({"failed": "; ".join(problems)} if problems else {})
