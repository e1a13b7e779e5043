"""Starting a verb again as several processes, by torchrun's own agent, and being one of them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from bayestune.errors import ConfigError, nearest

#: Engines by what ``--launch`` takes.
ENGINES = ("ddp", "fsdp2")


def is_worker() -> bool:
    """Return whether this process is one of several already, whoever started it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    said = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by other launchers
    return all(name in os.environ for name in said) and int(os.environ["WORLD_SIZE"]) > 1


def require_engine(engine: str) -> None:
    """Refuse engines that there are not.

    Raises:
        ConfigError: with the reason, where parameters would be flattened.
    """
    if engine.startswith(("deepspeed", "zero", "fsdp1")) or engine == "fsdp":
        raise ConfigError(
            f"--launch {engine}: DeepSpeed ZeRO and the first FSDP flatten parameters before the "
            "optimiser sees them, and a factor with orthonormal columns has to stay a matrix; use "
            "ddp, or fsdp2 where the backbone does not fit one device."
        )
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}.{nearest(engine, ENGINES)}")


def relaunch(count: int | None, *, debug: bool) -> None:
    """Run this command again in processes on this machine, and end as they end.

    Args:
        count: how many; one for each GPU where absent.
        debug: show what the agent says of processes that fail.

    Raises:
        ConfigError: if there is no count and no GPU.
        KeyboardInterrupt: if this process is asked to end.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = count or torch.cuda.device_count()
    if count < 1:
        raise ConfigError("--launch needs -n, the number of processes: there is no GPU to count.")
    if not debug:  # each process says itself why it failed
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        logs_specs=DefaultLogsSpecs(),
        run_id=f"bayestune-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "bayestune.cli", *sys.argv[1:])
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        raise typer.Exit(next((code for code in codes if code > 0), 1)) from None


@contextmanager
def together() -> Iterator[bool]:
    """Hold the connection to the processes this one was started with.

    Yields:
        Whether this is the one that speaks; the others say nothing but why they fail.
    """
    if not is_worker():
        yield True
        return
    from bayestune.processes import join, leave

    first = join().first
    if not first:
        logging.getLogger("bayestune").setLevel(logging.ERROR)
    yield first
    leave()  # not after an error, when others may wait for this one in vain
