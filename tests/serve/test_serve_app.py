"""Answers over HTTP: the offline ones whatever they share a pass with; clear refusals."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import torch
from toy_tasks import choice_rows, number_rows, pair_rows, topic_rows

import bayestune as bt
from bayestune.data import Task
from bayestune.errors import ConfigError, StoreError
from bayestune.serve import Runs
from bayestune.training import fit

pytestmark = pytest.mark.anyio
TEXTS = [row["text"] for row in topic_rows(40, 11)]
FIELDS = ("confidence", "entropy", "aleatoric", "epistemic", "ood_score")


def same(answer: dict, offline: dict) -> None:
    assert answer["label"] == offline["label"] and answer.keys() == offline.keys()
    for name in answer.get("probs", ()):
        assert answer["probs"][name] == pytest.approx(offline["probs"][name], abs=1e-5)
    for name in FIELDS:
        assert answer[name] == pytest.approx(offline[name], abs=1e-5, rel=1e-4)
    assert answer.get("set") == offline.get("set")
    assert answer.get("abstain") == offline.get("abstain")


async def test_answers_are_the_offline_ones_in_any_company(served, serving) -> None:
    model = bt.load(served)
    offline = list(model.predict(TEXTS, batch_size=1).rows(range(1, 41)))
    async with serving(served, wait=0.05, batch_rows=16) as client:
        one = client.post("/v1/predict", json={"inputs": TEXTS})
        alone = [client.post("/v1/predict", json={"inputs": text}) for text in TEXTS]
        shuffled = client.post("/v1/predict", json={"inputs": TEXTS[::-1], "model": "topics"})
        one, shuffled, *alone = await asyncio.gather(one, shuffled, *alone)
    assert one.status_code == 200 and one.json()["model"] == "topics"
    for answer, expected in zip(one.json()["predictions"], offline, strict=True):
        same(answer, expected)
    for answer, expected in zip(shuffled.json()["predictions"][::-1], offline, strict=True):
        same(answer | {"id": expected["id"]}, expected)
    for response, expected in zip(alone, offline, strict=True):
        (answer,) = response.json()["predictions"]
        assert answer["id"] == 1
        same(answer, expected)


async def test_rows_keep_their_ids_and_labels_are_not_looked_at(served, serving) -> None:
    rows = [{"text": TEXTS[0], "id": "x7", "label": "no such class"}, {"text": TEXTS[1]}]
    async with serving(served) as client:
        found = (await client.post("/v1/predict", json={"inputs": rows})).json()["predictions"]
    assert [one["id"] for one in found] == ["x7", 2]


async def test_intervals_hold_the_probabilities_and_top_keeps_the_likeliest(
    served, serving
) -> None:
    body = {"inputs": TEXTS[:4], "intervals": True, "level": 0.99}
    async with serving(served) as client:
        whole = (await client.post("/v1/predict", json=body)).json()["predictions"]
        narrow = (await client.post("/v1/predict", json=body | {"level": 0.5, "top": 2})).json()
    for a, b in zip(whole, narrow["predictions"], strict=True):
        for name, (low, high) in a["intervals"].items():
            assert 0 <= low <= a["probs"][name] <= high <= 1
        best = sorted(a["probs"], key=lambda k: -a["probs"][k])[:2]
        assert list(b["probs"]) == list(b["intervals"]) == best
        for name, (low, high) in b["intervals"].items():
            assert a["intervals"][name][0] <= low <= high <= a["intervals"][name][1]


async def test_a_request_may_state_its_own_risk(served, serving) -> None:
    from dataclasses import replace

    model = bt.load(served)
    rule = model.guarantees.abstain
    model.guarantees = replace(model.guarantees, abstain=replace(rule, max_risk=0.45))
    expected = model.predict(TEXTS).abstain.tolist()
    async with serving(served) as client:
        body = {"inputs": TEXTS, "max_risk": 0.45}
        found = (await client.post("/v1/predict", json=body)).json()["predictions"]
        default = (await client.post("/v1/predict", json={"inputs": TEXTS})).json()["predictions"]
    assert [one["abstain"] for one in found] == expected
    assert [one["abstain"] for one in default] == bt.load(served).predict(TEXTS).abstain.tolist()
    assert sum(expected) < sum(one["abstain"] for one in default)  # a laxer risk answers more


async def test_several_runs_share_one_copy_of_the_backbone(
    served, serving, make, clear, tmp_path
) -> None:
    other = make("blob", layers="top:1", rank=2)
    fit(other, clear, epochs=1)
    other.save(tmp_path / "model")
    async with serving(served, f"second={tmp_path}") as client:
        listed = (await client.get("/v1/models")).json()["models"]
        assert [one["name"] for one in listed] == ["topics", "second"]
        first, second = (run.model for run in client.service.runs)
        ours = {p.data_ptr() for p in first.backbone.parameters() if not p.requires_grad}
        for name, weight in second.backbone.transformer.named_parameters():
            if ".base_layer." in name or ("adapter" not in name and not weight.requires_grad):
                assert weight.data_ptr() in ours, name
        answers = [
            (await client.post("/v1/predict", json={"inputs": TEXTS[:5], "model": name})).json()
            for name in ("topics", "second")
        ]
        card = await client.get("/v1/models/second/card")
    for answer, model in zip(answers, (bt.load(served), bt.load(tmp_path)), strict=True):
        offline = model.predict(TEXTS[:5]).rows(range(1, 6))
        for one, expected in zip(answer["predictions"], offline, strict=True):
            same(one, expected)
    assert answers[0]["version"] != answers[1]["version"]
    assert "blob" in card.text and str(tmp_path) not in card.text


async def test_a_model_with_the_rows_of_a_class_more_shares_too(
    served, serving, make, tmp_path
) -> None:
    task = Task.from_rows(pair_rows(24))
    model = make(labels=task)
    fit(model, task, epochs=1)
    model.save(tmp_path / "pairs")
    row = {name: value for name, value in pair_rows(1)[0].items() if name != "label"}
    async with serving(served, tmp_path / "pairs") as client:
        fine = await client.post("/v1/predict", json={"inputs": [row], "model": "pairs"})
        text = await client.post("/v1/predict", json={"inputs": ["one"], "model": "pairs"})
    (answer,) = fine.json()["predictions"]
    same(answer, next(iter(bt.load(tmp_path / "pairs").predict([row]).rows([1]))))
    assert text.status_code == 422 and "text2" in text.json()["error"]["message"]


async def test_choices_and_numbers(serving, make, choice, tmp_path) -> None:
    model = make(labels=choice)
    fit(model, choice, epochs=1)
    model.save(tmp_path / "choice")
    task = Task.from_rows(number_rows(40), kind="regression")
    numbers = make(labels=task)
    fit(numbers, task, epochs=1)
    numbers.save(tmp_path / "numbers")
    question = {k: v for k, v in choice_rows(3)[2].items() if k != "answer"}
    async with serving(tmp_path / "choice", tmp_path / "numbers") as client:
        found = await client.post("/v1/predict", json={"inputs": [question], "intervals": True})
        text = await client.post("/v1/predict", json={"inputs": "which?"})
        body = {"inputs": ["some text"], "model": "numbers", "intervals": True, "top": 1}
        number = await client.post("/v1/predict", json=body)
    (answer,) = found.json()["predictions"]
    count = len(question["choices"])
    assert sum(p > 0 for p in answer["probs"].values()) == count
    assert sum(high > 0 for _, high in answer["intervals"].values()) == count
    assert text.status_code == 422 and "question" in text.json()["error"]["message"]
    expected = next(iter(bt.load(tmp_path / "numbers").predict(["some text"]).rows([1])))
    assert number.json()["predictions"] == [pytest.approx(expected, rel=1e-4)]


BAD = {
    "not json": (b'{"inputs": ["a"', 400, "json", None),
    "no body": (b"", 422, "json", None),
    "a list": (b'["a"]', 415, "json", None),
    "no inputs": (b"{}", 422, "field", "inputs"),
    "nothing": (b'{"inputs": []}', 422, "empty", "inputs"),
    "a number": (b'{"inputs": 3}', 422, "field", "inputs"),
    "a number in it": (b'{"inputs": ["a", 3]}', 422, "field", "inputs.1"),
    "an empty row": (b'{"inputs": ["a", {}]}', 422, "row", "inputs.1"),
    "null": (b'{"inputs": [{"text": null}]}', 422, "row", "inputs.0"),
    "half a pair": (b'{"inputs": ["a", "\\ud800"]}', 422, "row", "inputs.1"),
    "too long": (json.dumps({"inputs": ["x" * 2000]}).encode(), 422, "row", "inputs.0"),
    "another model": (b'{"inputs": "a", "model": "b"}', 404, "unknown_model", "model"),
    "a wrong type": (b'{"inputs": "a", "top": "two"}', 422, "field", "top"),
    "out of range": (b'{"inputs": "a", "max_risk": 1.5}', 422, "field", "max_risk"),
    "an unknown key": (b'{"inputs": "a", "temperature": 2}', 422, "field", "temperature"),
    "too many": (json.dumps({"inputs": ["a"] * 9}).encode(), 413, "too_many_rows", "inputs"),
    "too large": (b" " * 30_001, 413, "too_large", None),
    "nan": (b'{"inputs": "a", "level": NaN}', 422, "field", "level"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_requests_are_refused_with_the_field(served, serving, case, caplog) -> None:
    body, status, code, field = BAD[case]
    limits = {"request_rows": 8, "body_bytes": 30_000, "row_chars": 1000}
    async with serving(served, **limits) as client:
        headers = {"content-type": "application/json"}
        found = await client.post("/v1/predict", content=body, headers=headers)
        fine = await client.post("/v1/predict", json={"inputs": "a"})
    error = found.json()["error"]
    assert (found.status_code, error["code"], error.get("field")) == (status, code, field)
    assert "Traceback" not in found.text and str(served.parent) not in found.text
    assert found.headers["x-content-type-options"] == "nosniff"
    assert fine.status_code == 200 and not caplog.records


async def test_a_risk_needs_a_calibrated_run(serving, trained, tmp_path) -> None:
    trained.save(tmp_path / "plain")
    async with serving(tmp_path / "plain") as client:
        found = await client.post("/v1/predict", json={"inputs": "a", "max_risk": 0.1})
    assert found.status_code == 422 and found.json()["error"]["field"] == "max_risk"


async def test_the_key_is_asked_for_where_there_is_one(served, serving) -> None:
    body = {"inputs": "a"}
    async with serving(served, key="sesam") as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "sesa"}):
            found = await client.post("/v1/predict", json=body, headers=headers)
            assert found.status_code == 401 and found.json()["error"]["code"] == "key"
            assert found.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer sesam"}, {"x-api-key": "sesam"}):
            assert (await client.post("/v1/predict", json=body, headers=headers)).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 401
        for path in ("/", "/page.js", "/page.css", "/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200


async def until(there, seconds=30) -> None:
    async with asyncio.timeout(seconds):
        while not there():
            await asyncio.sleep(0.01)


async def test_too_many_rows_get_429_and_answers_in_time_503(served, serving, monkeypatch) -> None:
    import threading

    async with serving(
        served, queue_rows=2, request_rows=2, batch_rows=1, wait=0, answer_seconds=3
    ) as client:
        go, batcher = threading.Event(), client.service.batcher
        answer, passing = batcher._answer, threading.Event()

        def held(run, rows):
            passing.set()
            go.wait(30)
            return answer(run, rows)

        monkeypatch.setattr(batcher, "_answer", held)

        def post():
            return asyncio.create_task(client.post("/v1/predict", json={"inputs": "a"}))

        posts = [post()]
        await until(passing.is_set)  # before that, the second one would find no room
        posts += [post(), post()]
        await until(lambda: batcher.queued == 2)
        ready = await client.get("/readyz")
        busy = await client.post("/v1/predict", json={"inputs": "b"})
        unread = await client.post("/v1/predict", content=b"{")
        slow = await asyncio.gather(*posts)
        go.set()
        fine = await client.post("/v1/predict", json={"inputs": "b"})
    assert ready.status_code == 503 and ready.json()["status"] == "full"
    assert busy.status_code == 429 and int(busy.headers["retry-after"]) >= 1
    assert unread.status_code == 429, "refused before it is read"
    assert busy.json()["error"]["code"] == "busy" and "connection" not in busy.headers
    assert [one.status_code for one in slow] == [503] * 3 and fine.status_code == 200


async def test_a_client_that_has_gone_takes_no_place(served, serving, monkeypatch) -> None:
    """The disconnect itself comes from the server; here it is a message of the transport."""
    import threading

    async with serving(served, batch_rows=1, wait=0) as client:
        go, seen, batcher = threading.Event(), [], client.service.batcher
        answer, passing = batcher._answer, threading.Event()

        def held(run, rows):
            passing.set()
            go.wait(30)
            seen.append(rows[0].example.text)
            return answer(run, rows)

        monkeypatch.setattr(batcher, "_answer", held)
        first = asyncio.create_task(client.post("/v1/predict", json={"inputs": "first"}))
        await until(passing.is_set)
        body = json.dumps({"inputs": "gone"}).encode()
        messages = [
            {"type": "http.request", "body": body, "more_body": False},
            {"type": "http.disconnect"},
        ]
        sent: list = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "raw_path": b"/v1/predict",
            "query_string": b"",
            "headers": headers,
            "http_version": "1.1",
            "scheme": "http",
            "server": ("here", 80),
            "client": ("there", 1),
            "root_path": "",
        }
        await client._transport.app(scope, receive, send)
        go.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/predict", json={"inputs": "last"})).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert seen == ["first", "last"]
    assert 'bayestune_requests_total{code="499",path="/v1/predict"} 1.0' in metrics


async def test_a_row_whose_features_are_no_numbers_fails_alone(served, serving, monkeypatch):
    async with serving(served, wait=0.1) as client:
        model = client.service.runs.get(None).model
        observe = model.observe_encoded

        def spoilt(encoded, **options):
            phi = observe(encoded, **options)
            long = torch.tensor(encoded.lengths) > 30
            return phi.masked_fill(long[:, None], torch.nan)

        monkeypatch.setattr(model, "observe_encoded", spoilt)
        bad, fine = await asyncio.gather(
            client.post("/v1/predict", json={"inputs": ["a", "b " * 60]}),
            client.post("/v1/predict", json={"inputs": ["a"]}),
        )
    assert bad.status_code == 422 and bad.json()["error"]["field"] == "inputs.1"
    assert fine.status_code == 200


async def test_metrics_count_and_show_drift(served, serving) -> None:
    usual = [row["text"] for row in topic_rows(120, 21)]
    async with serving(served) as client:
        await client.post("/v1/predict", json={"inputs": usual})
        before = drift((await client.get("/metrics")).text)
        strange = [f"{i} zq xv {i * 7919} kk" for i in range(240)]
        await client.post("/v1/predict", json={"inputs": strange})
        text = (await client.get("/metrics")).text
    assert drift(text)["ood_score"] > 0.25 and drift(text)["ood_score"] > before["ood_score"]
    for line in (
        'bayestune_requests_total{code="200",path="/v1/predict"} 2.0',
        'bayestune_batch_rows_sum{model="topics"} 360.0',
        'bayestune_set_size_count{model="topics"} 360.0',
        'bayestune_score_count{model="topics",score="entropy"} 360.0',
        "bayestune_queue_rows 0.0",
    ):
        assert line in text, line


def drift(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line.startswith("bayestune_drift{")]
    return {line.split('score="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


async def test_the_page_asks_nobody_else(served, serving) -> None:
    async with serving(served) as client:
        page, script, style = [await client.get(p) for p in ("/", "/page.js", "/page.css")]
        schema = (await client.get("/openapi.json")).json()
        nothing = await client.get("/etc/passwd")
    for part in (page, script, style):
        assert part.status_code == 200
        assert "http://" not in part.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in part.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    answered = schema["paths"]["/v1/predict"]["post"]["responses"]
    assert {"200", "401", "404", "413", "422", "429", "503"} <= answered.keys()
    assert nothing.status_code == 404 and nothing.json()["error"]["code"] == "http"


def test_runs_that_cannot_be_served_are_refused(served, tmp_path) -> None:
    with pytest.raises(ConfigError, match="two runs are called 'topics'"):
        Runs([str(served), str(served)])
    with pytest.raises(ConfigError, match="no run to serve"):
        Runs([])
    with pytest.raises(StoreError):
        Runs([str(tmp_path / "nowhere")])


async def test_slow_bodies_are_cut_off(served, serving) -> None:
    async def drip():
        yield b'{"inputs"'
        await asyncio.sleep(5)

    async with serving(served, body_seconds=0.1) as client:
        headers = {"content-type": "application/json"}
        found = await client.post("/v1/predict", content=drip(), headers=headers)
    assert found.status_code == 408


async def test_a_body_without_a_length_is_counted_as_it_comes(served, serving) -> None:
    async def flood():
        for _ in range(100):
            yield b" " * 1000

    async with serving(served, body_bytes=5000) as client:
        headers = {"content-type": "application/json"}
        try:
            found = await client.post("/v1/predict", content=flood(), headers=headers)
        except httpx.ReadError:
            pytest.fail("the connection was cut without an answer")
    assert found.status_code == 413


async def test_bodies_of_all_requests_together_are_bounded(served, serving) -> None:
    go = asyncio.Event()

    async def slow():
        yield b'{"inputs": "a"' + b" " * 3000
        await go.wait()
        yield b"}"

    async with serving(served, body_bytes=5000, held_bytes=7000) as client:
        headers = {"content-type": "application/json"}
        first, second = (
            asyncio.create_task(client.post("/v1/predict", content=slow(), headers=headers))
            for _ in range(2)
        )
        await until(lambda: client._transport.app.held > 6000)
        third = await client.post("/v1/predict", content=b" " * 3000, headers=headers)
        go.set()
        statuses = [(await one).status_code for one in (first, second)]
        assert client._transport.app.held == 0
    assert statuses == [200, 200] and third.status_code == 429
    assert third.headers["retry-after"] == "1"
