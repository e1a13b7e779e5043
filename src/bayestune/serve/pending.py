"""What requests asked, kept until their states come back from the engine."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bayestune.data import Encoded, Task
from bayestune.errors import ConfigError, DataError
from bayestune.serve.rows import Asked


@dataclass(frozen=True)
class Asking:
    """What a request asked.

    Attributes:
        sidecar: name of the side-car that answers.
        task: its rows.
        asked: what is to be answered beside predictions.
        encoded: tokens of each row, by itself.
        prompts: token ids as they were sent, the probe first.
    """

    sidecar: str
    task: Task
    asked: Asked
    encoded: tuple[Encoded, ...]
    prompts: list[list[int]]


class Pending:
    """Requests on their way; found again by their id and the very tokens that were sent.

    A client may choose the id, and choose it twice: the tokens tell two requests apart, and of two
    that differ in options alone the second is refused. One that never comes back (its client has
    gone, the engine failed) is forgotten when the task that brought it ends. Without an id, as
    vLLM asks in its own process, a thread has one request at a time.
    """

    def __init__(self) -> None:
        #: Askings by id, and whether the end of a task forgets them.
        self._waiting: defaultdict[str, list[tuple[Asking, bool]]] = defaultdict(list)
        self._lock = threading.Lock()  # put on the event loop, taken on worker threads
        self._own = threading.local()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, request: str | None, asking: Asking) -> None:
        """Keep a request.

        Raises:
            DataError: if another one of this id and these tokens, but other options, waits.
        """
        if request is None:
            self._own.asking = asking
            return
        task = _current_task()
        with self._lock:
            same = [one for one, _ in self._waiting[request] if one.prompts == asking.prompts]
            if any(one != asking for one in same):
                raise DataError(
                    f"request_id: {request!r} is being answered, with the same rows and other "
                    "options; give every request an id of its own (X-Request-Id)."
                )
            self._waiting[request].append((asking, task is not None))
        if task is not None:
            task.add_done_callback(lambda _: self._forget(request, asking))

    def take(self, request: str | None, prompts: Sequence[Sequence[int]]) -> Asking:
        """Return the request whose states have come.

        Raises:
            ConfigError: if there is none whose tokens these are.
        """
        sent = [list(ids) for ids in prompts]
        if request is None:
            own, self._own.asking = getattr(self._own, "asking", None), None
            if own is not None and own.prompts == sent:
                return own
        else:
            with self._lock:
                found = list(self._waiting.get(request, ()))
            for asking, forgotten in found:
                if asking.prompts == sent:  # of equal ones any: each stays for its own task
                    if not forgotten:
                        self._forget(request, asking)
                    return asking
        raise ConfigError(
            "The engine did not run the prompts that it was given: leave truncate_prompt_tokens, "
            "truncation_side and padding out of the request; the plug-in cuts as in training."
        )

    def _forget(self, request: str, asking: Asking) -> None:
        with self._lock:
            # By identity: an equal request is another one, which still waits.
            left = [entry for entry in self._waiting[request] if entry[0] is not asking]
            self._waiting[request] = left
            if not left:
                del self._waiting[request]


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop: nobody hangs up
        return None
