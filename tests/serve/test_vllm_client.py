"""The client of ``/v1/embeddings``: predictions like the model's, and what it does not accept."""

from __future__ import annotations

import socket
import subprocess
import sys
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from embeddings_server import EmbeddingsServer, serve_embeddings
from number_tasks import number_task
from vllm_stand_in import RECORDED, engine

import bayestune
from bayestune.errors import ConfigError, DataError, ServerError
from bayestune.exports import export
from bayestune.exports.plain import _drawn
from bayestune.progress import silent
from bayestune.serve import VllmClient, client
from bayestune.serve.mixture import mixture
from bayestune.training import fit

TEXTS = ["find my parcel", "how can you refund this charge again please", "login"]


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    return export(trained, to="vllm", out=tmp_path_factory.mktemp("client") / "topics")


@pytest.fixture
def server(trained):
    with serve_embeddings({"bayes": engine(trained)}) as served:
        yield served


def close(found: Any, wanted: Any, **tolerance: float) -> None:
    assert type(found) is type(wanted)
    for field, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(found, field), value, **tolerance)


def same_shape(found: Any, wanted: Any) -> None:
    """Assert that JSON has the keys and types of what was recorded."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            same_shape(found[key], value)
    elif isinstance(wanted, list):
        for one in found:
            same_shape(one, wanted[0])


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_predictions_are_those_of_the_model(server, exported, trained, encoding) -> None:
    asking = VllmClient(server.url, exported, encoding=encoding, batch_size=2, api_key="secret")
    close(asking.predict(TEXTS), trained.predict(TEXTS), rtol=1e-5, atol=1e-5)
    assert [len(body["input"]) for body in server.asked] == [3, 2]  # the probe goes along
    same_shape(server.asked[0], RECORDED["embeddings_request"])
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert len(asking.predict([])) == 0
    close(asking.predict(TEXTS[0]), trained.predict(TEXTS[0]), rtol=1e-5, atol=1e-5)


def test_choices_numbers_and_pairs(make, choice, server, tmp_path) -> None:
    numbers = number_task(60)
    for name, task in (("choice", choice), ("numbers", numbers)):
        model = make(labels=task, epochs=2, refresh="none")
        fit(model, task, progress=silent)
        folder = export(model, to="vllm", out=tmp_path / name)
        server.adapters["bayes"] = engine(model)
        rows = task.select(range(6))
        wanted = model.predict(rows)
        close(VllmClient(server.url + "/v1/", folder).predict(rows), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["blob", "swag"])
def test_draws_are_all_asked_and_their_probabilities_averaged(
    make, clear, server, tmp_path, method
) -> None:
    weights = {"init_std": 0.3} if method == "blob" else {"scale": 20.0}
    model = make(method, epochs=3, weights=weights, predict={"samples": 3})
    fit(model, clear, progress=silent)
    folder = export(model, to="vllm", out=tmp_path / "out", samples=3)

    def drawn(s: int) -> Any:
        run = engine(model)

        def under(prompts: list[list[int]]) -> torch.Tensor:
            with torch.no_grad(), _drawn(model, s):
                return run(prompts)

        return under

    server.adapters.update({f"tuned-{s}": drawn(s) for s in range(3)})
    found, wanted = VllmClient(server.url, folder, "tuned").predict(TEXTS), model.predict(TEXTS)
    for field in ("probs", "entropy", "aleatoric", "epistemic"):
        torch.testing.assert_close(
            getattr(found, field), getattr(wanted, field), rtol=1e-4, atol=1e-5
        )
    assert wanted.epistemic.max() > 1e-4
    assert {body["model"] for body in server.asked} == {"tuned-0", "tuned-1", "tuned-2"}
    assert len(found.ood_score) == 3


def test_a_mixture_of_numbers_has_the_moments_of_its_parts() -> None:
    from bayestune.prediction import RegressionPrediction

    generator = torch.Generator().manual_seed(0)
    mean, a, e = (torch.rand(3, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    parts = [
        RegressionPrediction(m, torch.hypot(x, y), x, y, y)
        for m, x, y in zip(mean, a, e, strict=True)
    ]
    found = mixture(parts)
    draws = [
        m + s * torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
        for m, s in zip(mean, torch.hypot(a, e), strict=True)
    ]
    drawn = torch.cat(draws)
    error = 4 * drawn.std(0) / len(drawn) ** 0.5
    assert ((found.mean - drawn.mean(0)).abs() < error).all()
    assert ((found.std - drawn.std(0)).abs() < 4 * error).all()
    torch.testing.assert_close(found.std.square(), found.aleatoric**2 + found.epistemic**2)
    point = [
        RegressionPrediction(m, x, x, torch.zeros_like(x), x, torch.full_like(x, 5.0))
        for m, x in zip(mean, a[:1].expand(3, 2), strict=True)
    ]
    share = (a[0].square() + mean.var(0, correction=0)) / a[0].square()
    torch.testing.assert_close(mixture(point).dof, 4 + share.square())


# what it refuses -----------------------------------------------------------------------------


def test_normalised_states_are_refused(server, exported) -> None:
    with pytest.raises(ConfigError, match=r"scaled to length 1.*use_activation: false"):
        VllmClient(server.url, exported, extra={}).predict(TEXTS)


def test_the_wrong_adapter_is_refused(server, exported, trained_mle) -> None:
    server.adapters["other"] = engine(trained_mle)
    with pytest.raises(ConfigError, match="is another one than the side-car's"):
        VllmClient(server.url, exported, "other").predict(TEXTS)
    assert len(VllmClient(server.url, exported, "other", tolerance=10).predict(TEXTS)) == 3


def test_unknown_models_are_refused_in_the_servers_words(server, exported) -> None:
    with pytest.raises(ServerError, match="404: The model `other` does not exist"):
        VllmClient(server.url, exported, "unknown").predict(TEXTS)


def test_a_busy_server_is_asked_again(server: EmbeddingsServer, exported, monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    date = formatdate(client.time.time() + 30, usegmt=True)
    busy = [{"Retry-After": "7"}, {"Retry-After": date}, {"Retry-After": "soon"}, {}]
    server.first = [(429 if i % 2 else 503, headers, b"") for i, headers in enumerate(busy)]
    assert len(VllmClient(server.url, exported).predict(TEXTS)) == 3
    assert len(server.asked) == 5
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2:] == [2.0, 4.0]
    server.first = [(503, {"Retry-After": "9999"}, b"later")] * 2
    with pytest.raises(ServerError, match="503: later"):
        VllmClient(server.url, exported, retries=1).predict(TEXTS)
    assert waits[4:] == [60.0]


def _one_less(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"data": answer["data"][1:]}


def _reversed(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"data": answer["data"][::-1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_one_less, "answers 3 states; expected 4"),
        (lambda _: {"data": []}, "something else than embeddings"),
        (lambda _: {"object": "list"}, "something else than embeddings"),
        (lambda _: [], "something else than embeddings"),
        (lambda a: a | {"data": [{"index": 0, "embedding": "$$$$"}]}, "something else than emb"),
        (lambda a: a | {"data": [{"index": 0, "embedding": None}]}, "something else than emb"),
    ],
)
def test_other_answers_are_refused(server, exported, change, words) -> None:
    server.change = change
    with pytest.raises(ServerError, match=words):
        VllmClient(server.url, exported).predict(TEXTS)


def test_states_are_put_in_order(server, exported, trained) -> None:
    server.change = _reversed
    found = VllmClient(server.url, exported).predict(TEXTS)
    close(found, trained.predict(TEXTS), rtol=1e-5, atol=1e-5)


def test_what_is_no_server(server, exported) -> None:
    server.first = [(200, {}, b"<html>")]
    with pytest.raises(ServerError, match="does not answer in JSON"):
        VllmClient(server.url, exported).predict(TEXTS)
    server.first = [(500, {}, b"")]
    with pytest.raises(ServerError, match="refuses with 500: Internal Server Error"):
        VllmClient(server.url, exported).predict(TEXTS)
    with socket.socket() as silence:
        silence.bind(("127.0.0.1", 0))
        port = silence.getsockname()[1]
        with pytest.raises(ServerError, match=r"cannot be asked: .*refused"):
            VllmClient(f"http://127.0.0.1:{port}", exported).predict(TEXTS)
        silence.listen()
        with pytest.raises(ServerError, match="cannot be asked: timed out"):
            VllmClient(f"http://127.0.0.1:{port}", exported, timeout=0.1).predict(TEXTS)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8000"},
        {"url": "file:///etc/passwd"},
        {"batch_size": 0},
        {"timeout": 0},
        {"tolerance": 0},
        {"retries": -1},
        {"encoding": "bytes"},
    ],
)
def test_bad_options(exported, options) -> None:
    with pytest.raises(ConfigError):
        VllmClient(**{"url": "http://localhost", "sidecar": exported, **options})


def test_rows_of_another_task_are_refused(server, exported, choice) -> None:
    with pytest.raises(DataError, match="The model reads classification tasks"):
        VllmClient(server.url, exported).predict(choice)
    assert not server.asked


def test_pairs_that_token_ids_do_not_tell_apart_are_refused(
    make, pairs, bert_base, tmp_path, server
) -> None:
    model = make(labels=pairs, base=str(bert_base), layers="all", epochs=1)
    fit(model, pairs, progress=silent)
    folder = export(model, to="gguf-ready", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="by token types"):
        VllmClient(server.url, folder).predict([("find my parcel", "login")])


# what it needs -------------------------------------------------------------------------------


def test_the_client_needs_no_server_of_ours_and_the_core_no_vllm() -> None:
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vllm", "fastapi", "uvicorn", "prometheus_client", "starlette"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
import bayestune.exports, bayestune.training
from bayestune.serve import VllmClient
print(sorted({m.split('.')[2] for m in sys.modules if m.startswith('bayestune.serve.')}))
"""
    source = str(Path(bayestune.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "client" in done.stdout and "vllm" not in done.stdout and "app" not in done.stdout


def test_nothing_else_of_ours_imports_the_plug_in() -> None:
    root = Path(bayestune.__file__).parent
    own = root / "serve" / "vllm.py"
    texts = {path: path.read_text(encoding="utf-8") for path in root.rglob("*.py") if path != own}
    assert not [p for p, text in texts.items() if "serve.vllm import" in text]
    assert not [
        p for p, text in texts.items() if "import vllm" in text and p.parts[-2] != "exports"
    ]
