"""The routes: predictions, what is served, probes and metrics."""

from __future__ import annotations

import asyncio
import importlib.resources
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from bayestune.errors import BayestuneError
from bayestune.serve.batcher import Batcher, FullError
from bayestune.serve.guard import BUSY, PREDICT, Guard
from bayestune.serve.inputs import RowError
from bayestune.serve.limits import Limits
from bayestune.serve.monitor import Monitor
from bayestune.serve.rows import Asked, Row
from bayestune.serve.runs import Runs, Served
from bayestune.serve.schema import ErrorResponse, PredictRequest, PredictResponse, name_field
from bayestune.version import __version__

_PAGE = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
_PAGE["/page.css"] = ("page.css", "text/css")
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse, "description": text}
    for code, text in (
        (401, "The key is missing or wrong."),
        (404, "No run of this name is served."),
        (408, "The body did not arrive in time."),
        (413, "Too many bytes or rows."),
        (422, "A field is wrong; it is named."),
        (429, "Too many rows wait; Retry-After says when there may be room."),
        (503, "The answer took too long."),
    )
}


class ProblemError(Exception):
    """A request that cannot be answered.

    Args:
        status: of the answer.
        code: for programs.
        message: for people.
        field: where in the request.
        retry: seconds after which to come again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        retry: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.retry = status, code, field, retry

    def response(self) -> JSONResponse:
        """Return it as an answer."""
        headers = {} if self.retry is None else {"Retry-After": str(math.ceil(self.retry))}
        error = {"code": self.code, "message": str(self), "field": self.field}
        return JSONResponse({"error": error}, self.status, headers)


class Service:
    """The runs, their queue and their counters, behind the routes.

    Args:
        runs: what is served.
        limits: sizes and times.
    """

    def __init__(self, runs: Runs, limits: Limits) -> None:
        self.runs, self.limits = runs, limits
        references = {run.name: run.model.notes.get("reference", {}) for run in runs}
        self.monitor = Monitor(references)
        self.batcher = Batcher(runs.answer, limits, self.monitor)
        self.ready = False

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer between start and stop."""
        self.batcher.start()
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            await self.batcher.stop()

    def run(self, name: str | None, field: str) -> Served:
        """Return the run that a field of a request names."""
        if (found := self.runs.get(name)) is not None:
            return found
        names = ", ".join(repr(one.name) for one in self.runs)
        reason = f"No run is called {name!r}; there are {names}."
        raise ProblemError(404, "unknown_model", reason, field)

    async def predict(self, asked: PredictRequest, request: Request) -> dict[str, Any]:
        """Answer a request."""
        run = self.run(asked.model, "model")
        inputs = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        self._check(asked, run, inputs)
        with self.batcher.reserve(len(inputs)):
            rows = await self._read(asked, run, inputs)
            self.batcher.put(run.name, rows)
        answers = await self._wait(run.name, rows, request)
        self.monitor.answered(run.name, answers)
        return {"model": run.name, "version": run.version, "predictions": answers}

    def _check(self, asked: PredictRequest, run: Served, inputs: Sequence[Any]) -> None:
        if not inputs:
            raise ProblemError(422, "empty", "There is nothing to predict.", "inputs")
        if len(inputs) > self.limits.request_rows:
            raise ProblemError(
                413,
                "too_many_rows",
                f"{len(inputs)} rows; a request may have {self.limits.request_rows}.",
                "inputs",
            )
        rule = None if run.model.guarantees is None else run.model.guarantees.abstain
        if asked.max_risk is not None and rule is None:
            raise ProblemError(
                422,
                "not_calibrated",
                f"{run.name} is not calibrated for abstention, so that no risk can be kept: run "
                "bayestune calibrate with --max-risk.",
                "max_risk",
            )

    async def _read(self, asked: PredictRequest, run: Served, inputs: Sequence[Any]) -> list[Row]:
        """Read and encode the rows beside the event loop, one request after the other."""
        wanted = Asked(asked.level if asked.intervals else None, asked.max_risk, asked.top)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.batcher.reading, run.rows, inputs, self.limits.row_chars, wanted, loop
            )
        except RowError as error:
            raise ProblemError(422, "row", f"{error}", f"inputs.{error.position}") from error

    async def _wait(self, run: str, rows: Sequence[Row], request: Request) -> list[dict[str, Any]]:
        """Wait for all answers, or until the client has gone or has waited long enough."""
        answers = asyncio.gather(*(row.answer for row in rows), return_exceptions=True)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait(
                (answers, gone),
                timeout=self.limits.answer_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answers.done():
                return [_fine(i, found) for i, found in enumerate(answers.result())]
            if gone.done():
                raise ProblemError(499, "gone", "The client has gone.")
            raise ProblemError(
                503, "slow", f"No answer in {self.limits.answer_seconds:g} s.", retry=1.0
            )
        finally:
            gone.cancel()
            self.batcher.drop(run, rows)


def _fine(i: int, found: dict[str, Any] | BaseException) -> dict[str, Any]:
    """Return the answer to a row, or raise what it failed of."""
    if isinstance(found, BayestuneError):
        raise ProblemError(422, "row", str(found), f"inputs.{i}") from found
    if isinstance(found, BaseException):
        raise found
    return found


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(runs: Runs, limits: Limits | None = None, key: str | None = None) -> Guard:
    """Return the server as an ASGI application.

    Args:
        runs: what is served.
        limits: sizes and times.
        key: that requests must bring; None for none.
    """
    limits = limits or Limits()
    service = Service(runs, limits)
    app = FastAPI(
        title="bayestune",
        version=__version__,
        description="Predictions with their uncertainty.",
        lifespan=service.lifespan,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service

    @app.post(PREDICT, response_model=PredictResponse, responses=_PROBLEMS)
    async def predict(asked: PredictRequest, request: Request) -> JSONResponse:
        """Predict texts with their uncertainty."""
        return JSONResponse(await service.predict(asked, request))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the runs, their classes and what they guarantee."""
        found = {"request_rows": limits.request_rows, "row_chars": limits.row_chars}
        return {"models": [run.describe() for run in runs], "limits": found}

    @app.get("/v1/models/{name}/card")
    async def card(name: str) -> Response:
        """Return what a model says of itself, in Markdown."""
        return Response(service.run(name, "name").card, media_type="text/markdown")

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """Say whether requests are taken."""
        fine = service.ready and service.batcher.full() is None
        status = "ready" if fine else "full" if service.ready else "stopping"
        return JSONResponse({"status": status}, 200 if fine else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return counters in Prometheus's text format."""
        text = service.monitor.render(service.batcher.queued)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (file, kind) in _PAGE.items():
        content = (importlib.resources.files("bayestune.serve") / "page" / file).read_bytes()
        app.get(path, include_in_schema=False)(_static(content, kind))
    _handle_errors(app)
    routes = frozenset(getattr(route, "path", "") for route in app.routes)
    return Guard(app, limits, key, service.monitor, routes, service.batcher.full)


def _static(content: bytes, kind: str) -> Any:
    async def page() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return page


def _handle_errors(app: FastAPI) -> None:
    """Answer everything that goes wrong in one form, without a stack or a path of this machine."""

    @app.exception_handler(ProblemError)
    async def problem(_: Request, error: ProblemError) -> Response:
        return error.response()

    @app.exception_handler(FullError)
    async def full(_: Request, error: FullError) -> Response:
        return ProblemError(429, "busy", BUSY, retry=error.retry).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors()[-1]).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        response = ProblemError(error.status_code, "http", str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return ProblemError(500, "internal", "The server failed; its log says why.").response()


def _invalid(error: Mapping[str, Any]) -> ProblemError:
    """Return what pydantic has against a body."""
    kind, where = error["type"], [part for part in error["loc"] if part != "body"]
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return ProblemError(400, "json", f"The body is not JSON: {reason}.")
    if not where:
        reason = "The body is no JSON object; send one, with Content-Type: application/json."
        return ProblemError(422 if kind == "missing" else 415, "json", reason)
    field, message = name_field(error)
    return ProblemError(422, "field", message, field)
