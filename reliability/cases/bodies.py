"""Requests to the server: bodies, heads, paths and methods."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx

from bayestune.serve import Limits, Runs, make_app
from reliability.cases.damage import BOMBS, spoil, text, value
from reliability.cases.harness import must
from reliability.cases.world import World

_KEY = "sesam"
_PATHS = (
    *(
        "/v1/models/../../etc/passwd/card",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/card",
        "//etc/passwd",
    ),
    *(
        "/v1/models/x%00y/card",
        "/v1/models/run/card",
        "/v1/models",
        "/v1/predict/",
        "/page.js/../app.py",
    ),
    *("/metrics", "/openapi.json", "/docs", "/", "/healthz", "/readyz", "/%ff", "/" + "a" * 5000),
)
_TYPES = ("application/json",) * 8 + (
    "text/plain",
    "",
    "application/json; charset=utf-16",
    "\xff",
    "a/b",
)
_LENGTHS = ("-1", "1e3", "99999999999999999999", "0x10", "", " 7", "٣")


class Bodies:
    """A server of the run, with a key, in this process."""

    name, title = "bodies", "HTTP requests"

    def __init__(self, folder: Path, world: World) -> None:
        self.world, self.place = world, str(world.folder)
        limits = Limits(wait=0.0, body_bytes=2**21, request_rows=8)
        app = make_app(Runs([str(world.run)]), limits, _KEY)
        self.service = app.app.state.service  # pyright: ignore
        self.runner = asyncio.Runner()
        self.alive = self.service.lifespan(app.app)
        self.runner.run(self.alive.__aenter__())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # pyright: ignore
        self.client = httpx.AsyncClient(transport=transport, base_url="http://here")

    def close(self) -> None:
        """Stop the server."""
        self.runner.run(self.client.aclose())
        self.runner.run(self.alive.__aexit__(None, None, None))
        self.runner.close()

    def case(self, rng: random.Random) -> bool:
        """Send one request and look at status, form, headers and, of answers, every number."""
        asked, body = _body(rng)
        headers = {
            "content-type": rng.choice(_TYPES).encode("latin-1"),
            "authorization": f"Bearer {_KEY}",
        }
        method, path = "POST", "/v1/predict"
        if rng.random() < 0.15:
            method, path = rng.choice(("GET", "PUT", "OPTIONS", "BREW", "POST")), rng.choice(_PATHS)
        if rng.random() < 0.1:
            headers["content-length"] = rng.choice(_LENGTHS).encode()
        keyed = rng.random() < 0.95
        if not keyed:
            headers["authorization"] = rng.choice(("", "Bearer", "Bearer x", f"Basic {_KEY}", _KEY))
        headers["origin"] = "http://elsewhere"
        response = self.runner.run(
            self.client.request(method, path, content=body, headers=headers)  # pyright: ignore
        )
        must(response.status_code < 500, f"{response.status_code}: {response.text[:200]}")
        must("access-control-allow-origin" not in response.headers, "CORS is on")
        must(response.headers["x-content-type-options"] == "nosniff", "a header is missing")
        must("default-src 'none'" in response.headers["content-security-policy"], "no policy")
        must(
            self.place not in response.text and "Traceback" not in response.text,
            "it tells too much",
        )
        if path == "/v1/predict" and not keyed:
            must(response.status_code == 401, f"{response.status_code} without the key")
        if response.status_code == 200 and path == "/v1/predict" and method == "POST":
            must(asked is not None, "accepted what was no request")
            self._compare(response.json(), asked)
        elif response.status_code >= 400:
            must(response.json()["error"]["message"], "no word of why")
        return response.status_code == 200

    def _compare(self, answer: dict[str, Any], asked: Any) -> None:
        inputs = asked["inputs"]
        texts = [inputs] if isinstance(inputs, str) else inputs
        texts = [item["text"] if isinstance(item, dict) else item for item in texts]
        found: Any = self.world.model.predict(texts)
        must(len(answer["predictions"]) == len(texts), "answers are lost")
        for line, probs in zip(answer["predictions"], found.probs.tolist(), strict=True):
            expected = dict(zip(found.names, probs, strict=True))
            for name, p in line["probs"].items():
                must(abs(p - expected[name]) < 1e-5, f"{p} instead of {expected[name]}")


def _body(rng: random.Random) -> tuple[Any, bytes]:
    """Return a request, None where it is none, and its bytes."""
    inputs: Any = [text(rng) for _ in range(rng.randint(1, 4))]
    kind = rng.randrange(4)
    if kind == 0:
        inputs = inputs[0]
    elif kind == 1:
        inputs = [{"text": one, "id": rng.choice(("a", 1, "a"))} for one in inputs]
    asked: dict[str, Any] = {"inputs": inputs}
    if rng.random() < 0.4:
        name = rng.choice(("inputs", "model", "top", "level", "intervals", "max_risk", "x"))
        asked[name] = value(rng)
    if rng.random() < 0.3:
        asked |= {"intervals": True, "top": 2, "model": "run"}
    body = json.dumps(asked, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        body = spoil(rng, body) if rng.random() < 0.8 else rng.choice(BOMBS)
    try:
        return json.loads(body), body
    except (ValueError, RecursionError):
        return None, body
