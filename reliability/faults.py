"""Commands in processes of their own, with a fault at a chosen file operation or moment.

A process is forked from one that has imported everything: it starts in milliseconds, and many can
be killed. Python tells an audit hook of every file operation before it is done, so nothing of the
product is changed to break it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

#: What Python tells of that changes a folder; `open` only where it is for writing.
_CHANGES = {
    *("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"),
    *("os.truncate", "os.link", "os.symlink"),
}
#: What a full disk still allows.
_FREES = {"os.remove", "os.rmdir", "os.rename", "os.chmod"}
#: Capabilities by which root ignores the modes of files.
_OVERRIDES = 0b110
_CAPABILITIES = 0x20080522  # the version of the interface


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        kind: ``kill`` (SIGKILL), ``full`` (the disk, from then on), ``denied`` (nothing can be
            written), ``limit`` (no file may grow beyond ``at`` bytes), ``int``, ``term`` (signals).
        at: the number of the file operation, from 1; bytes for ``limit``.
        after: seconds instead, for what is sent from outside.
    """

    kind: Literal["kill", "full", "denied", "limit", "int", "term"]
    at: int = 0
    after: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status, negative where a signal ended it.
        said: what it wrote to stdout and stderr.
        changes: its file operations below the watched folder, where nothing was to happen.
        seconds: it took.
    """

    status: int
    said: str
    changes: list[str]
    seconds: float


def run(
    arguments: Sequence[str],
    watched: Path,
    fault: Fault | None = None,
    before: Callable[[], Any] = lambda: None,
    workplace: Path | None = None,
) -> Ended:
    """Run a command of bayestune in a process of its own.

    Args:
        arguments: of the command line.
        watched: the folder whose changes are counted.
        fault: what happens to it.
        before: called in the process first, to look at what it does.
        workplace: where notes on the process go; beside the watched folder where absent.
    """
    place = workplace or watched.parent
    trail = place / f"{watched.name}.trail"
    trail.write_text("")
    reader, writer = os.pipe()  # what is said must not depend on a disk that is full
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _child(arguments, watched, fault, before, writer, trail)
        finally:
            os._exit(70)  # never back into the harness
    os.close(writer)
    if fault is not None and fault.after:
        time.sleep(fault.after)
        number = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}[fault.kind]
        os.kill(pid, number)  # not waited for yet, so the number is still its own
    with open(reader, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
        said = stream.read()
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    return Ended(os.waitstatus_to_exitcode(status), said, trail.read_text().splitlines(), seconds)


def _child(
    arguments: Sequence[str],
    watched: Path,
    fault: Fault | None,
    before: Callable[[], Any],
    said: int,
    trail: Path,
) -> None:
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        before()
        _break(watched, fault, os.open(trail, os.O_WRONLY | os.O_APPEND))
        from bayestune.cli.app import app

        app(list(arguments), prog_name="bayestune")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _break(watched: Path, fault: Fault | None, trail: int) -> None:
    """Arm the fault of this process."""
    if fault is not None and fault.kind == "denied":
        _obey_modes()
    if fault is not None and fault.kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, fault.at))
    root, count, at = str(watched), 0, fault.at if fault and not fault.after else 0

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _CHANGES or not (named := _changed(event, values)).startswith(root):
            return
        count += 1
        if fault is None:
            os.write(trail, f"{event} {named.removeprefix(root)}\n".encode())
        elif fault.kind == "kill" and count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind in ("int", "term") and count == at:
            os.kill(os.getpid(), signal.SIGINT if fault.kind == "int" else signal.SIGTERM)
        elif fault.kind == "full" and count >= at and event not in _FREES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), named)

    sys.addaudithook(hook)


def _obey_modes() -> None:
    """Let the modes of folders hold for this process, even where it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(head, sets) == 0:
        sets[0] &= ~_OVERRIDES
        libc.capset(head, sets)


def _changed(event: str, values: tuple[Any, ...]) -> str:
    """Return the path that an operation changes; empty where it changes none."""
    path = values[0]
    if event == "open":
        flags = values[2] if isinstance(values[2], int) else 0
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND):
            return ""
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    named = os.fsdecode(path)
    if event in ("os.remove", "os.rmdir") and values[1] != -1:  # within a folder held open
        return f"{Path(f'/proc/self/fd/{values[1]}').readlink()}/{named}"
    return named
