"""What SECURITY.md promises of the code itself: nothing is unpickled or run, nobody is called."""

from __future__ import annotations

import ast
import hmac
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
from toy_tasks import topic_rows
from typer.testing import CliRunner

from bayestune.cli.app import app
from bayestune.serve import Limits, Runs, make_app

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
#: Modules that unpickle or run, and calls that do.
MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "subprocess",
    "ctypes",
    "code",
}
CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load"}
CALLS |= {
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.jit.load",
    "load_state_dict_from_url",
}
SAFE = {"trust_remote_code": False, "shell": False, "allow_pickle": False, "weights_only": True}


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and words of all that would unpickle, run a command or run code of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in CALLS or called.startswith("os.exec") or called.startswith("os.spawn"):
            yield node.lineno, called
        if called in ("np.load", "numpy.load"):
            yield node.lineno, called
        if called.endswith(".from_pretrained") and called.lower().startswith("auto"):
            given = {keyword.arg for keyword in node.keywords}
            # A mapping of options may say it, too.
            named = None in given and "'trust_remote_code': False" in ast.unparse(tree)
            if "trust_remote_code" not in given and not named:
                yield node.lineno, f"{called} without trust_remote_code"
        for keyword in node.keywords:
            if keyword.arg in SAFE and ast.unparse(keyword.value) != str(SAFE[keyword.arg]):
                yield node.lineno, f"{keyword.arg}={ast.unparse(keyword.value)}"


def test_nothing_in_the_sources_unpickles_or_runs_anything() -> None:
    assert len(SOURCES) > 200
    found = [
        f"{path.name}:{line} {what}"
        for path in SOURCES
        for line, what in offences(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "AutoModel.from_pretrained(x)",
        "auto.from_pretrained(x, **options)",
        "run(x, shell=True)",
        "os.system('ls')",
        "yaml.load(f)",
        "eval(text)",
    ],
)
def test_the_scan_finds_what_it_looks_for(code) -> None:
    assert list(offences(ast.parse(code)))


@pytest.fixture
def calls(monkeypatch) -> list[object]:
    """Refuse and record every connection and every name that is looked up."""
    found: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        found.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return found


def test_train_predict_and_the_others_call_nobody(calls, llama_base, tmp_path) -> None:
    file, unseen, run = tmp_path / "rows.jsonl", tmp_path / "unseen.jsonl", tmp_path / "run"
    for seed, rows in enumerate((file, unseen)):
        rows.write_text("".join(json.dumps(row) + "\n" for row in topic_rows(90, seed)))
    quick = ["rank=2", "layers=top:1", "epochs=1", "kl=1.0"]
    verbs = (
        ["train", "--model", str(llama_base), "--data", str(file), "--out", str(run), *quick],
        ["predict", str(run), str(file), "--out", str(tmp_path / "out.jsonl")],
        ["eval", str(run), "--data", str(unseen)],
        ["calibrate", str(run), "--data", str(unseen), "--coverage", "0.8"],
        ["update", str(run), "--data", str(unseen), "--out", str(tmp_path / "updated")],
        ["export", str(run), "--to", "lora", "--out", str(tmp_path / "lora")],
    )
    for verb in verbs:
        result = CliRunner().invoke(app, verb)
        assert result.exit_code == 0, (verb[0], result.stderr)
    assert not calls, calls
    socket_guard = CliRunner().invoke(app, ["predict", str(run), "--base", "org/name"], input="{}")
    assert calls and socket_guard.exit_code == 2, "a Hub id is looked for on the Hub"


@pytest.mark.anyio
async def test_the_server_calls_nobody_and_compares_keys_in_constant_time(
    calls, trained, tmp_path, monkeypatch
) -> None:
    trained.save(tmp_path / "model")
    guard = make_app(Runs([str(tmp_path)]), Limits(), "sesam")
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest
    monkeypatch.setattr(
        hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b)
    )
    transport = httpx.ASGITransport(app=guard, raise_app_exceptions=False)  # type: ignore
    service = guard.app.state.service  # type: ignore[attr-defined]
    async with (
        service.lifespan(guard.app),  # type: ignore[arg-type]
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        headers = {"authorization": "Bearer sesam", "origin": "http://elsewhere"}
        answer = await client.post("/v1/predict", json={"inputs": "a"}, headers=headers)
        wrong = await client.post("/v1/predict", json={"inputs": "a"}, headers={"x-api-key": "s"})
        page = await client.get("/")
        asked = {"access-control-request-method": "POST", "origin": "http://elsewhere"}
        before = await client.options("/v1/predict", headers=asked | headers)
    assert answer.status_code == 200 and wrong.status_code == 401 and before.status_code == 405
    assert compared == [(b"sesam", b"sesam"), (b"s", b"sesam"), (b"sesam", b"sesam")]
    for response in (answer, wrong, page, before):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert "server" not in response.headers
    assert not calls, calls


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"
