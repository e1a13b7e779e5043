"""What reaches the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

import typer

from bayestune.cli.options import debugging

log = logging.getLogger("bayestune.cli")


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes plain lines to whatever stderr is at the time: above the bar while one is shown."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show what bayestune logs, as plain lines."""
    logger = logging.getLogger("bayestune")
    level, handler = logger.level, _Stderr()
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def quiet(ctx: typer.Context) -> Iterator[None]:
    """Keep other libraries' bars, reports and warnings away, and their prints off stdout.

    Downloads keep their bars, because they take long. Nothing is hidden with ``--debug``; warnings
    asked for with ``python -W`` stay.
    """
    with redirect_stdout(sys.stderr):
        if debugging(ctx):
            yield
            return
        from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils import logging as hf

        downloads, bars, verbosity = (
            not are_progress_bars_disabled(),
            hf.is_progress_bar_enabled(),
            hf.get_verbosity(),
        )
        hf.disable_progress_bar()
        if downloads:
            enable_progress_bars()
        hf.set_verbosity_error()
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.simplefilter("ignore")
                yield
        finally:
            hf.set_verbosity(verbosity)
            if bars and downloads:
                hf.enable_progress_bar()


def complain(sentence: str) -> None:
    """Write the one sentence with which a verb fails."""
    rank = os.environ.get("RANK", "0")  # of processes that train together
    who = "" if rank == "0" else f"process {rank}: "
    print(f"bayestune: {who}{sentence}", file=sys.stderr, flush=True)


def emit(text: str, stream: TextIO | None = None) -> None:
    """Write a result at once, so that a closed pipe is noticed here."""
    print(text, file=stream or sys.stdout, flush=True)


def emit_table(*tables: Any) -> None:
    """Write rich tables, in colour on a terminal."""
    from rich.console import Console

    # A file or pipe has no width of its own; the usual guess of 80 would cut long cells.
    console = Console(width=None if sys.stdout.isatty() else 250)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    emit("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()))
