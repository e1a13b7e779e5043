"""Trainings of a benchmark side by side, each device in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging as hf

from bayestune.bench.cell import Cell, Key
from bayestune.bench.plan import Plan
from bayestune.errors import BayestuneError
from bayestune.progress import silent

if TYPE_CHECKING:
    from bayestune.bench.run import Bench


def side_by_side(
    plan: Plan, bench: Bench, devices: Sequence[str], told: Callable[[Cell], None]
) -> None:
    """Do all trainings of a plan that are not there yet, one at a time on each device.

    Where one fails, the others end theirs first; an interrupt ends all at once.

    Args:
        plan: which trainings.
        bench: what each worker gets a copy of.
        devices: where to; one may be named twice.
        told: told each cell.

    Raises:
        BayestuneError: if a worker's process died.
    """
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices:
        free.put(device)
    threads = max(1, torch.get_num_threads() // len(devices))
    others = set(multiprocessing.active_children())
    busy: dict[Future[Cell], Key] = {}
    with ProcessPoolExecutor(len(devices), context, _begin, (bench, free, threads)) as pool:
        try:
            while True:
                for key in [key for key in plan.todo()[0] if key not in busy.values()]:
                    if len(busy) < len(devices):
                        with _deaf():
                            busy[pool.submit(_work, key)] = key
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    cell = future.result()
                    del busy[future]
                    told(cell)
        except KeyboardInterrupt:
            for worker in set(multiprocessing.active_children()) - others:
                if worker.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGINT)
            raise
        except BrokenProcessPool as error:
            raise BayestuneError(
                f"A worker's process died (killed, or out of memory?) while the workers were at "
                f"{', '.join(map(str, busy.values()))}. {plan.out} holds what was complete: run "
                "the same again to go on, on fewer devices if memory was short."
            ) from error


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which a terminal sends to all of them."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread hears of it at all
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


#: The benchmark of a worker process.
_own: Bench | None = None


def _begin(bench: Bench, free: Any, threads: int) -> None:
    global _own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    hf.disable_progress_bar()  # of several processes, which would write over each other
    torch.set_num_threads(threads)
    _own = replace(bench, device=free.get(), progress=silent)


def _end_with_parent() -> None:
    """End this process with the one that started it, however that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(key: Key) -> Cell:
    assert _own is not None
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return _own.cell(key)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt(*_: Any) -> None:
    # Once: a second one would interrupt the tidying up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
