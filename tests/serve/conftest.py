"""Saved runs, and a server over them in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from toy_tasks import topic_rows

import bayestune as bt
from bayestune.data import Task
from bayestune.evaluation import record
from bayestune.serve import Limits, Runs, make_app

#: A client of a server over some folders, with other limits or a key.
Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def served(trained: Any, clear: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated and measured PoLAR-VBLL model on disk."""
    folder = tmp_path_factory.mktemp("served") / "topics"
    trained.save(folder)
    model = bt.load(folder)
    fresh = Task.from_rows(topic_rows(300, 77, wrong=0.1), like=clear)
    bt.calibrate(model, fresh, coverage=0.9, max_risk=0.2)
    model.save(folder)
    unseen = Task.from_rows(topic_rows(60, 78, wrong=0.1), like=clear)
    record(model, bt.evaluate(model, unseen), unseen, folder)
    return folder


@pytest.fixture
def serving() -> Serving:
    """Serve folders in this process; the server itself stands in ``client.app``."""

    @asynccontextmanager
    async def serve(
        *folders: object, key: str | None = None, **limits: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        app = make_app(Runs([str(folder) for folder in folders]), Limits(**limits), key)
        service = app.app.state.service  # type: ignore[attr-defined]
        async with service.lifespan(app.app):  # type: ignore[arg-type]
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                client.service = service  # type: ignore[attr-defined]
                yield client

    return serve


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop that uvicorn runs."""
    return "asyncio"


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Run a verb; returns typer's result with exit_code, stdout and stderr."""
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, (result.stdout, result.stderr)
        return result

    return run
