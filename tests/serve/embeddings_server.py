"""A server that answers ``/v1/embeddings`` as vLLM 0.33 does, with a model for an engine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor
from vllm_stand_in import RECORDED, Engine


class EmbeddingsServer:
    """Keeps what it was asked, and answers it, or something else that a test puts first.

    Args:
        adapters: an engine by name; the server knows no other models.
    """

    def __init__(self, adapters: dict[str, Engine]) -> None:
        self.adapters = adapters
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        #: Status, headers and body of answers that are given first.
        self.first: list[tuple[int, dict[str, str], bytes]] = []
        self.change = lambda answer: answer
        self.url = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(body)
        if self.first:
            return self.first.pop(0)
        if body["model"] not in self.adapters:
            return 404, {}, json.dumps(RECORDED["error_response"]).encode()
        states = self.adapters[body["model"]](body["input"])
        if body.get("use_activation") is not False:
            states = states / states.norm(dim=-1, keepdim=True)
        found = {**RECORDED["embeddings_response"], "model": body["model"]}
        found["data"] = [
            {"index": i, "object": "embedding", "embedding": _encode(state, body)}
            for i, state in enumerate(states)
        ]
        return 200, {}, json.dumps(self.change(found)).encode()


def _encode(state: Tensor, body: dict[str, Any]) -> Any:
    if body["encoding_format"] == "base64":
        return base64.b64encode(state.numpy().astype("<f4").tobytes()).decode()
    return state.tolist()


@contextmanager
def serve_embeddings(adapters: dict[str, Engine]) -> Iterator[EmbeddingsServer]:
    """Serve adapters on a free port of this machine."""
    served = EmbeddingsServer(adapters)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/embeddings"
            served.headers.append(dict(self.headers))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, answer = served.answer(body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
