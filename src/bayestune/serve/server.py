"""Running the server until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bayestune.errors import ConfigError
from bayestune.serve.app import make_app
from bayestune.serve.limits import Limits
from bayestune.serve.runs import Runs

logger = logging.getLogger(__name__)

#: Connections taken from the system in one go, before any of them can be refused.
_BACKLOG = 512
#: Files that the process may have open besides its connections.
_FILES = 64
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
_FULL += b"Connection: close\r\nContent-Length: 0\r\n\r\n"
#: Seconds after which a thread that waits for the interpreter is given it.
_SWITCH = 0.0005


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; before the models are loaded, so that a taken port is no surprise.

    Raises:
        ConfigError: if the address is taken or not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, or asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for a late ACK.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {reason}. Give another --host or --port."
        ) from error
    return found


def serve(
    folders: Sequence[str],
    sock: socket.socket,
    *,
    limits: Limits | None = None,
    key: str | None = None,
    loaded: Callable[[Runs], None] = lambda _: None,
    **options: Any,
) -> None:
    """Serve runs until SIGINT or SIGTERM; what was accepted by then is still answered.

    Args:
        folders: run folders, or ``NAME=FOLDER``.
        sock: where to listen, from `listen`.
        limits: sizes and times.
        key: that requests must bring; None for none.
        loaded: called when they listen.
        **options: of `bayestune.load`.
    """
    # A pass gives the interpreter away at every operation, and waits so long to get it back where
    # the event loop is busy: at Python's 5 ms a pass took up to three times as long.
    sys.setswitchinterval(_SWITCH)
    limits = limits or Limits()
    runs = Runs(folders, **options)
    app = make_app(runs, limits, key)
    connections, backlog = room_for(limits.connections)
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        http=patient(limits.head_seconds, limits.body_seconds, connections),
        backlog=backlog,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks who the client is
        timeout_graceful_shutdown=round(limits.drain_seconds),
        timeout_keep_alive=round(limits.head_seconds),
        lifespan="on",
        ws="none",
    )
    _Server(config, lambda: loaded(runs)).run(sockets=[sock])


def room_for(connections: int) -> tuple[int, int]:
    """Return how many connections there may be, and how many to take in one go.

    The process is allowed as many files as that takes, where the system lets it. Out of files,
    asyncio would try again without a pause, with a line in the log each time.

    Args:
        connections: how many there should be room for.
    """
    try:
        import resource
    except ImportError:  # Windows counts no files
        return connections, _BACKLOG
    wanted = connections + _BACKLOG + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:  # RLIM_INFINITY is negative
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft = wanted if soft < 0 else soft
    backlog = min(_BACKLOG, soft // 4)
    room = min(connections, max(1, soft - backlog - _FILES))
    if room < connections:
        logger.warning(
            "this process may open %d files: room for %d connections at a time, not %d",
            *(soft, room, connections),
        )
    return room, backlog


def patient(head: float, answer: float, connections: int = sys.maxsize) -> type[H11Protocol]:
    """Return HTTP/1.1 that waits for its clients, but not for ever, as uvicorn does.

    A few thousand silent connections would be all it can have, and answers that nobody reads stay
    in memory.

    Args:
        head: seconds for the head of a request to come, or for the rest of a body nobody reads.
        answer: seconds for an answer to be taken.
        connections: that may be open at a time.
    """

    class Patient(H11Protocol):
        late: asyncio.TimerHandle | None = None
        unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
            full = len(self.connections) >= connections
            super().connection_made(transport)
            if full:
                transport.write(_FULL)
                transport.close()
                return
            self.late = self.loop.call_later(head, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._hurry()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._hurry()

        def _hurry(self) -> None:
            """Give a head so long and no longer, and a body that was refused before it came."""
            waiting = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
            if waiting and self.late is None:
                self.late = self.loop.call_later(head, self.transport.close)
            elif not waiting and self.late is not None:
                self.late.cancel()
                self.late = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self.unread = self.loop.call_later(answer, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.unread is not None:
                self.unread.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.late, self.unread):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return Patient


class _Server(uvicorn.Server):
    """Says when it listens, which uvicorn itself says in its own words."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()
