"""What stands before the routes: sizes, times, the key and headers; as plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bayestune.serve.limits import Limits
from bayestune.serve.monitor import Monitor

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Paths that answer without a key: probes, and the page, which asks for it.
OPEN = frozenset({"/", "/page.js", "/page.css", "/healthz", "/readyz"})
#: The one path that costs a pass, and what it answers where no room is left.
PREDICT, BUSY = "/v1/predict", "Too many rows wait already: come again later."
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class RefusedError(Exception):
    """A request is refused before or while it is read.

    Args:
        status: of the answer.
        code: for programs.
        message: for people.
        retry: seconds after which to come again.
    """

    def __init__(self, status: int, code: str, message: str, retry: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry


class Guard:
    """Refuses what is too large, too slow or without the key; counts and marks the rest.

    Args:
        app: what answers.
        limits: sizes and times.
        key: that requests must bring; None for none.
        monitor: counts requests.
        routes: paths that are counted by their names; others are one.
        full: seconds after which there may be room for a request; None where there is.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        key: str | None,
        monitor: Monitor,
        routes: frozenset[str],
        full: Callable[[], float | None],
    ) -> None:
        self.app, self.limits, self.monitor, self.routes = app, limits, monitor, routes
        self.full, self.held = full, 0
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.routes else "other"
        started, status, held = time.monotonic(), 0, 0

        def hold(count: int) -> None:
            nonlocal held
            held, self.held = held + count, self.held + count
            if held > self.limits.body_bytes:
                raise self._too_large()
            if self.held > self.limits.held_bytes:
                raise RefusedError(429, "busy", BUSY, 1.0)

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            self._check(scope)
            # Whole before anything else is done for it: who sends slowly takes no room.
            if (body := await self._body(receive, hold)) is not None:
                self._require_room(scope)  # there was, when it began
                await self.app(scope, _after(body, receive), marked)
        except RefusedError as error:
            await _refuse(error, marked)
        finally:
            self.held -= held
            self.monitor.requests.labels(path, str(status or 499)).inc()
            self.monitor.seconds.labels(path).observe(time.monotonic() - started)

    def _require_room(self, scope: Scope) -> None:
        if scope["path"] == PREDICT and (retry := self.full()) is not None:
            raise RefusedError(429, "busy", BUSY, retry)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in OPEN:
            bearer = headers.get(b"authorization", b"")
            given = (
                bearer[7:] if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
            )
            if not hmac.compare_digest(given, self.key):
                raise RefusedError(
                    401, "key", "The API key is missing or wrong: send Authorization: Bearer KEY."
                )
        # Before a body is parsed: beyond capacity there would be time for refusals alone.
        self._require_room(scope)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise RefusedError(400, "content_length", "Content-Length is not a number.")
        if int(length) > self.limits.body_bytes:
            raise self._too_large()

    async def _body(self, receive: Receive, hold: Callable[[int], None]) -> bytes | None:
        """Return a body, counted while it arrives; None where its client has gone."""
        parts, more = [], True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    hold(len(parts[-1]))
                    more = message.get("more_body", False)
        except TimeoutError:
            late = f"The body did not arrive in {self.limits.body_seconds:g} s."
            raise RefusedError(408, "slow", late) from None
        return b"".join(parts)

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, "too_large", f"The body has more than {self.limits.body_bytes} bytes: send less."
        )


def _after(body: bytes, receive: Receive) -> Receive:
    """Return what receives a body that has come, and then that the client has gone."""
    left = [body]

    async def received() -> MutableMapping[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return received


async def _refuse(error: RefusedError, send: Send) -> None:
    body = json.dumps({"error": {"code": error.code, "message": str(error)}}).encode()
    headers = [(b"content-type", b"application/json")]
    if error.retry is None:
        headers.append((b"connection", b"close"))
    else:  # who is to come again may do so on the same connection
        headers.append((b"retry-after", str(math.ceil(error.retry)).encode()))
    headers.append((b"content-length", str(len(body)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
