"""From an exception to one sentence on stderr and an exit status."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import typer

from bayestune.cli.console import complain
from bayestune.cli.options import debugging
from bayestune.cli.stopping import Terminated
from bayestune.errors import BayestuneError

UNEXPECTED = 1
BAD_INPUT = 2
GATE_FAILED = 3
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

# Typer brings its own copy of click in some versions and takes the installed one in others; the
# family of usage errors is reached through the one name that all versions export.
_USAGE: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)  # pyright: ignore[reportAssignmentType]


@contextmanager
def reporting(ctx: typer.Context) -> Iterator[None]:
    """Turn whatever goes wrong in a verb into one sentence and an exit status."""
    try:
        yield
        sys.stdout.flush()
    except (typer.Exit, typer.Abort, _USAGE):
        raise
    except BayestuneError as error:
        _fail(ctx, str(error), BAD_INPUT)
    except BrokenPipeError:
        _discard_stdout()
        raise typer.Exit(BROKEN_PIPE) from None
    except OSError as error:
        _fail(ctx, _os_sentence(error), BAD_INPUT)
    except KeyboardInterrupt as error:
        status = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        _fail(ctx, str(error) or "interrupted.", status)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            _fail(
                ctx,
                "out of memory; lower train.batch_size or prompt.max_length (--batch-size for eval "
                "and predict), or adapt fewer layers.",
                UNEXPECTED,
            )
        _fail(
            ctx,
            f"unexpected error, please report it: {type(error).__name__}: {_first_line(error)} "
            "(BAYESTUNE_DEBUG=1 shows the traceback)",
            UNEXPECTED,
        )


def _fail(ctx: typer.Context, sentence: str, status: int) -> NoReturn:
    if debugging(ctx):
        traceback.print_exc(file=sys.stderr)
    complain(sentence)
    raise typer.Exit(status) from None


def _os_sentence(error: OSError) -> str:
    reason = error.strerror or _first_line(error)
    if error.errno == errno.ENOSPC:
        reason += "; free some space, or set TMPDIR or BAYESTUNE_CACHE to another disk"
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _discard_stdout() -> None:
    """Let the interpreter's last flush go nowhere: the reader has gone."""
    with suppress(OSError, io.UnsupportedOperation):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
