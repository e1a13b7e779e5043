"""A server in a process of its own, and one request to it, byte by byte."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Server:
    """``bayestune serve`` on a free port, from ``with`` to its end.

    Args:
        run: a run's folder.
        options: of the verb.
    """

    def __init__(self, run: Path, *options: str) -> None:
        self.command = [sys.executable, "-m", "bayestune.cli", "serve", str(run), "--port", "0"]
        self.command += options

    def __enter__(self) -> Server:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if " on http://" in line:
                self.port = int(line.rsplit(":", 1)[1])
                # A pipe that nobody reads would stop it some day.
                self._reads = threading.Thread(target=deque, args=(self.process.stderr, 0))
                self._reads.start()
                return self
        raise RuntimeError("the server does not start")

    def __exit__(self, *_: object) -> None:
        """End it, if it has not."""
        self.process.kill()
        self.process.wait()
        self._reads.join()
        self.process.stderr.close()  # pyright: ignore[reportOptionalMemberAccess]

    def resident(self) -> float:
        """Return the megabytes of memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000  # pyright: ignore

    async def metric(self, name: str) -> float:
        """Return one number of ``/metrics``."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = (await reader.read()).decode()
        writer.close()
        return float(re.search(rf"^{name} (\S+)$", said, re.MULTILINE)[1])  # pyright: ignore


def head(texts: Sequence[str]) -> bytes:
    """Return a whole request, head and body."""
    body = json.dumps({"inputs": list(texts)}).encode()
    head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, texts: Sequence[str]
) -> tuple[int, Any]:
    """Send a request and return the status and the body of its answer."""
    writer.write(head(texts))
    return await read_answer(reader)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Return the status and the body of the next answer."""
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return int(answer[9:12]), json.loads(await reader.readexactly(length))
