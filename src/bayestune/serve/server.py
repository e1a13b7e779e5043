"""Running the server until it is told to stop."""

from __future__ import annotations

import asyncio
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
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        http=patient(limits.head_seconds, limits.body_seconds),
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


def patient(head: float, answer: float) -> type[H11Protocol]:
    """Return HTTP/1.1 that waits for its clients, but not for ever, as uvicorn does.

    A few thousand silent connections would be all it can have, and answers that nobody reads stay
    in memory.

    Args:
        head: seconds for the head of a request to come.
        answer: seconds for an answer to be taken.
    """

    class Patient(H11Protocol):
        late: asyncio.TimerHandle | None = None
        unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
            super().connection_made(transport)
            self.late = self.loop.call_later(head, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waiting = self.conn.their_state is h11.IDLE
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
