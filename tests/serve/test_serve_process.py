"""The command itself: it listens, drains on SIGTERM, and refuses what it cannot do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from toy_tasks import topic_rows
from uvicorn.server import ServerState

from bayestune.serve import listen
from bayestune.serve.server import patient


@contextmanager
def server(*arguments: object, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command until it listens; yields the process and its address."""
    command = [sys.executable, "-m", "bayestune.cli", "serve", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if " on http://" in line:
                break
        else:
            pytest.fail("".join(seen))
        yield process, line.rsplit(" on ", 1)[1].strip()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def post(address: str, inputs: object, **headers: str) -> tuple[int, dict]:
    body = json.dumps({"inputs": inputs}).encode()
    given = {"content-type": "application/json", **headers}
    request = urllib.request.Request(f"{address}/v1/predict", body, given)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def waiting(address: str) -> float:
    """Return how many rows wait for their pass."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as response:
        said = response.read().decode()
    return float(re.search(r"^bayestune_queue_rows (\S+)$", said, re.MULTILINE)[1])


def test_nothing_accepted_is_lost_on_sigterm(served: Path) -> None:
    texts = [row["text"] for row in topic_rows(100, 5)]
    with server(served, "--max-wait", "3000", "--max-batch", "256") as (process, address):
        found: list[tuple[int, dict]] = []
        threads = [
            threading.Thread(target=lambda i=i: found.append(post(address, texts[i::8])))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 2.5
        while waiting(address) < 100 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert sorted(len(answer["predictions"]) for _, answer in found) == [12] * 4 + [13] * 4
        assert process.wait(30) == -signal.SIGTERM
        with pytest.raises(OSError):
            post(address, "late")


def test_the_key_comes_from_the_environment(served: Path) -> None:
    with server(served, "--api-key-env", "SESAM", SESAM="open") as (_, address):
        assert post(address, "a")[0] == 401
        assert post(address, "a", authorization="Bearer open")[0] == 200


def test_bad_arguments_exit_with_2_before_anything_is_loaded(cli, served, tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = cli("serve", served, "--port", port, code=2).stderr
        assert f"127.0.0.1:{port} cannot be listened on" in said and "loading" not in said
    said = cli("serve", served, "--api-key-env", "NOT_THERE", code=2).stderr
    assert "NOT_THERE is not set" in said
    said = cli("serve", tmp_path / "nowhere", "--port", 0, code=2).stderr
    assert "nowhere" in said
    said = cli("serve", served, served, "--port", 0, code=2).stderr
    assert "two runs are called" in said
    assert "Traceback" not in said


def test_without_its_libraries_the_error_says_what_to_install(cli, served, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = cli("serve", served, code=2).stderr
    assert "bayestune[serve]" in said


def test_small_answers_leave_at_once() -> None:
    """asyncio switches Nagle's algorithm off for sockets that say that they are TCP."""
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


async def fine(scope, receive, send) -> None:
    """Answer when the body has come."""
    while (await receive())["more_body"]:
        pass
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def busy(scope, receive, send) -> None:
    """Refuse before the body has come."""
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def conversation(protocol: type, *parts: tuple[float, bytes], app=fine) -> bytes:
    """Send parts after pauses; return what came until the server closed."""
    config = uvicorn.Config(app, http=protocol, log_level="critical", lifespan="off", ws="none")
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    started = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*started.sockets[0].getsockname())
    for pause, part in parts:
        await asyncio.sleep(pause)
        writer.write(part)
    try:
        said = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:  # what was still being sent met a closed door
        said = b""
    writer.close()
    started.close()
    return said


@pytest.mark.anyio
async def test_heads_that_do_not_come_close_the_connection() -> None:
    protocol = patient(0.3, 30)
    head = b"GET / HTTP/1.1\r\nHost: x\r\n"
    assert await conversation(protocol) == b""
    dripping = [(0.12, bytes([letter])) for letter in head[:8]]
    assert await conversation(protocol, *dripping) == b""
    said = await conversation(protocol, (0.1, head), (0.1, b"\r\n"), (0.5, head))
    assert said.count(b"200 OK") == 1, "the first is answered, the half one waited for in vain"
    body = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    said = await conversation(protocol, (0, body), (0.5, b"a"), (0.1, b"b"))
    assert said.count(b"200 OK") == 1, "a body is not a head"


@pytest.mark.anyio
async def test_a_body_that_was_refused_unread_cannot_drip_for_ever() -> None:
    protocol = patient(0.3, 30)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    dripping = [(0.12, b"x")] * 8
    assert (await conversation(protocol, (0, head), *dripping, app=busy)).count(b"429") <= 1
    said = await conversation(protocol, (0, head), (0.1, b"x" * 9), (0.1, head), app=busy)
    assert said.count(b"429") == 2, "who sends it all may come again on the same connection"


@pytest.mark.anyio
async def test_connections_beyond_the_limit_are_told_so_and_closed() -> None:
    protocol = patient(30, 30, connections=2)
    config = uvicorn.Config(fine, http=protocol, log_level="critical", lifespan="off", ws="none")
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    first, second, third = [await asyncio.open_connection(*address) for _ in range(3)]
    assert (await asyncio.wait_for(third[0].read(), 10)).startswith(b"HTTP/1.1 503")
    for reader, writer in (first, second):
        writer.write(head)
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"ok"), "those before go on"
    reader, writer = await asyncio.open_connection(*address)
    writer.write(head)
    assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"ok"), "there is room again"
    for one in (first[1], second[1], third[1], writer):
        one.close()
    server.close()


def test_connections_are_no_more_than_files_may_be_open() -> None:
    code = """
import resource, sys
from bayestune.serve.server import room_for
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(*room_for(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    found = {
        limits: subprocess.run(
            [sys.executable, "-c", code, *map(str, limits)], capture_output=True, text=True
        ).stdout.split()
        for limits in ((200, 200, 4096), (100, 300, 50), (100, 2000, 1000))
    }
    assert found[200, 200, 4096] == ["86", "50", "200"]
    assert found[100, 300, 50] == ["50", "75", "300"]
    assert found[100, 2000, 1000] == ["1000", "394", "1576"]


@pytest.mark.anyio
async def test_an_answer_that_nobody_takes_closes_the_connection() -> None:
    sent, large = asyncio.Event(), b"x" * 2**25

    async def app(scope, receive, send) -> None:
        headers = [(b"content-length", str(len(large)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": large})
        sent.set()

    protocol = patient(0.2, 0.5)
    config = uvicorn.Config(app, http=protocol, log_level="critical", lifespan="off", ws="none")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    for patience in (0.0, 1.5):
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await asyncio.wait_for(sent.wait(), 10)
            await asyncio.sleep(patience)
            assert len(state.connections) == (0 if patience else 1)
            if not patience:  # who takes it in time has all of it
                assert await asyncio.to_thread(whole, client) > len(large)
        sent.clear()
    server.close()


def whole(client: socket.socket) -> int:
    """Read until the connection is closed; return how many bytes came."""
    read = 0
    while part := client.recv(2**20):
        read += len(part)
    return read
