"""What the server accepts, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bayestune.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds on requests and on batches.

    Attributes:
        batch_rows: rows of one pass.
        batch_tokens: tokens of one pass, padding counted; a longer row goes by itself.
        wait: seconds for which a row waits for others to share its pass.
        queue_rows: rows that may wait; more are refused with 429.
        request_rows: rows of one request.
        row_chars: characters of one row.
        body_bytes: bytes of one request.
        held_bytes: bytes of all requests that are read or answered at a time; more get 429.
        head_seconds: for which a connection may be silent before its request, or the head of that
            take to arrive.
        body_seconds: for which a body may take to arrive, and its answer to be taken.
        answer_seconds: for which an answer may take.
        drain_seconds: for which answers may take once the server is told to stop.
        connections: that may be open at a time; more are closed at once, with 503. Fewer where
            the system lets the process open fewer files.
    """

    batch_rows: int = 32
    batch_tokens: int = 16_384
    wait: float = 0.005
    queue_rows: int = 1024
    request_rows: int = 256
    row_chars: int = 100_000
    body_bytes: int = 8 * 2**20
    held_bytes: int = 256 * 2**20
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    drain_seconds: float = 60.0
    connections: int = 4096

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not value > 0 and not (option.name == "wait" and value == 0):
                raise ConfigError(f"{option.name} = {value!r} given, expected a positive number.")
        if self.request_rows > self.queue_rows:
            raise ConfigError(
                f"queue_rows = {self.queue_rows} is less than request_rows = {self.request_rows}: "
                "the largest request would never find room."
            )
