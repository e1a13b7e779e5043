"""``bayestune serve``: predictions over HTTP."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from bayestune.cli.console import log, quiet
from bayestune.cli.options import Base, Debug, Device, Dtype, Samples
from bayestune.cli.stopping import by_the_signal
from bayestune.errors import ConfigError


def serve(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs' folders; NAME=RUN gives a name."),
    ],
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Address to listen on; 0.0.0.0 for all.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 for a free one.")
    ] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask requests for the key in this environment variable."),
    ] = None,
    max_wait: Annotated[
        float,
        typer.Option(metavar="MS", min=0, help="For which a row waits for others, milliseconds."),
    ] = 5.0,
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Rows of one pass.")] = 32,
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rows that may wait; more get 429.")
    ] = 1024,
    max_rows: Annotated[int, typer.Option(metavar="N", min=1, help="Rows of one request.")] = 256,
    max_connections: Annotated[
        int, typer.Option(metavar="N", min=1, help="Connections at a time; more get 503.")
    ] = 4096,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.001, help="For which an answer may take, seconds.")
    ] = 60.0,
    device: Device = None,
    dtype: Dtype = None,
    samples: Samples = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Serve runs over HTTP, with a page at / to try them.

    Runs of the same backbone share its weights. Requests choose one by its name; rows that arrive
    together share a pass. On SIGTERM what was accepted is still answered.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serving needs {error.name}, which is not installed: pip install 'bayestune[serve]'."
        ) from error
    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise ConfigError(f"--api-key-env: the variable {api_key_env} is not set or is empty.")
    with quiet(ctx):
        from bayestune import serve as server

        limits = server.Limits(
            batch_rows=max_batch,
            wait=max_wait / 1000,
            queue_rows=max_queue,
            request_rows=min(max_rows, max_queue),
            answer_seconds=timeout,
            drain_seconds=timeout,
            connections=max_connections,
        )
        sock = server.listen(host, port)
        with sock:
            address = sock.getsockname()

            def loaded(found: server.Runs) -> None:
                names = ", ".join(run.name for run in found)
                shown = f"[{address[0]}]" if ":" in address[0] else address[0]
                log.info("serving %s on http://%s:%d", names, shown, address[1])

            log.info("loading %s", ", ".join(runs))
            by_the_signal()  # the server drains by itself; supervisors expect that end
            server.serve(
                runs,
                sock,
                limits=limits,
                key=key,
                loaded=loaded,
                base=base,
                device=device,
                dtype=dtype,
                samples=samples,
            )
