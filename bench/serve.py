"""What the server delivers under load, and what batching gains; a run over HTTP on this machine.

Closed loop: every client sends its next text when its last one is answered. Beside it, in the same
process and run: texts predicted one by one without a server, and the bare forward pass in batches.

    python bench/serve.py RUN [--rows 512] [--characters 60] [--concurrency 1 4 16 32 64]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import bayestune as bt
from bayestune.data.quickstart import quickstart_path
from bayestune.model import BayesModel
from bayestune.training.run import environment


@contextmanager
def server(run: str, *options: str) -> Iterator[int]:
    """Serve a run from another process; yields the port."""
    command = [sys.executable, "-m", "bayestune.cli", "serve", run, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = next(line for line in process.stderr if " on http://" in line)
    try:
        yield int(line.rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()


async def client(port: int, texts: Iterator[str], seconds: list[float]) -> None:
    """Send texts one after the other over one connection; a library would cost more than it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in texts:
        body = json.dumps({"inputs": text}).encode()
        head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        started = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - started)
        assert b" 200 " in answer[:20], answer
    writer.close()
    await writer.wait_closed()


def load(port: int, texts: list[str], clients: int) -> tuple[float, list[float]]:
    """Return rows per second and the latencies of all rows."""
    left, seconds = iter(texts), []

    async def run() -> None:
        await asyncio.gather(*(client(port, left, seconds) for _ in range(clients)))

    started = time.perf_counter()
    asyncio.run(run())
    return len(texts) / (time.perf_counter() - started), seconds


def bare(model: BayesModel, texts: list[str], size: int) -> float:
    """Return rows per second of the bare pooled forward pass: no head, no tokeniser, no reading."""
    encoded = model.tokenize(model.read(texts))
    started = time.perf_counter()
    model.reader().features(encoded, size)
    return len(texts) / (time.perf_counter() - started)


def one_by_one(model: BayesModel, texts: list[str]) -> float:
    """Return rows per second of texts predicted one by one, without a server."""
    started = time.perf_counter()
    for text in texts:
        model.predict(text)
    return len(texts) / (time.perf_counter() - started)


def texts(count: int, characters: int) -> list[str]:
    """Return quick-start messages, cut, and again from the first where there are too few."""
    lines = quickstart_path("train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["text"][:characters] for line in lines]
    return (found * -(-count // len(found)))[:count]


def main() -> None:
    """Print rows per second and latencies by the number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--characters", type=int, default=1000, help="cut texts to so many")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = texts(arguments.rows, arguments.characters)
    model = bt.load(arguments.run)
    lengths = model.tokenize(model.read(rows)).lengths
    tokens = f"{min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}"
    print(environment(), f"{torch.get_num_threads()} threads; {tokens}")
    rates: dict[tuple[str, int], list[float]] = {}
    latencies: dict[tuple[str, int], list[float]] = {}
    with server(arguments.run) as batching, server(arguments.run, "--max-batch", "1") as single:
        for repeat in range(arguments.repeats + 1):  # the first one warms everything up
            for clients in arguments.concurrency:
                for kind, port in (("batching", batching), ("single rows", single)):
                    rate, seconds = load(port, rows, clients)
                    if repeat:
                        rates.setdefault((kind, clients), []).append(rate)
                        latencies.setdefault((kind, clients), []).extend(seconds)
            if repeat:
                rates.setdefault(("one by one", 1), []).append(one_by_one(model, rows[:128]))
                for size in (1, 32):
                    rates.setdefault(("bare pass", size), []).append(bare(model, rows, size))
    reference = statistics.median(rates["one by one", 1])
    print(f"{'':12} {'clients':>8} {'rows/s':>8} {'to one by one':>14} {'p50 ms':>8} {'p99 ms':>8}")
    for (kind, clients), each in rates.items():
        rate = statistics.median(each)
        line = f"{kind:12} {clients:8} {rate:8.1f} {rate / reference:14.2f}"
        if found := sorted(latencies.get((kind, clients), ())):
            middle, late = (found[int(q * (len(found) - 1))] * 1000 for q in (0.5, 0.99))
            line += f" {middle:8.1f} {late:8.1f}"
        print(line)


if __name__ == "__main__":
    main()
