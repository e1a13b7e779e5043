"""The plug-in of vLLM, behind a stand-in of its server: what it asks for, answers and refuses."""

from __future__ import annotations

import asyncio
import importlib
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm_stand_in
from vllm_stand_in import RECORDED, PoolingParams, Server, engine

from bayestune.errors import ConfigError, DataError, NumericsError, StoreError
from bayestune.exports import export
from bayestune.progress import silent
from bayestune.training import fit

TEXTS = ["find my parcel", "how can you refund this charge again please", "login"]
KEYS = ("probs", "entropy", "aleatoric", "epistemic", "ood_score", "confidence")


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    return export(trained, to="vllm", out=tmp_path_factory.mktemp("vllm") / "topics")


@pytest.fixture(scope="session")
def asking(make, choice, tmp_path_factory) -> tuple[Any, Path]:
    """A model of questions with two to four choices, and its export."""
    model = make(labels=choice, epochs=2, refresh="none")
    fit(model, choice, progress=silent)
    return model, export(model, to="vllm", out=tmp_path_factory.mktemp("vllm") / "asking")


@pytest.fixture
def plugin(monkeypatch) -> Any:
    """The module of the plug-in, where vLLM is."""
    for name, module in vllm_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    vllm_stand_in.forget()
    yield importlib.import_module("bayestune.serve.vllm")
    vllm_stand_in.forget()


@pytest.fixture
def processor(plugin, monkeypatch) -> Any:
    """Make a processor over some side-cars."""

    def make(**sidecars: Path) -> Any:
        given = " ".join(f"{name}={folder}" for name, folder in sidecars.items())
        monkeypatch.setenv(plugin.SIDECARS, given)
        return plugin.Processor(None, None)

    return make


@pytest.fixture
def server(processor, exported, trained) -> Server:
    return Server(processor(bayes=exported), engine(trained))


def ask(server: Server, data: Any, request: str = "a", **options: Any) -> dict[str, Any]:
    return asyncio.run(server.online({"model": "bayes", "data": data}, request, **options))["data"]


def same(lines: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [line["label"] for line in lines] == [line["label"] for line in wanted]
    for line, one in zip(lines, wanted, strict=True):
        for key in KEYS:
            assert line[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6), key


def offline(model: Any, texts: Any = TEXTS) -> list[dict[str, Any]]:
    return list(model.predict(texts).rows([i + 1 for i in range(len(texts))]))


# what is loaded ------------------------------------------------------------------------------


def test_the_entry_point_names_the_class(plugin) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    group = "vllm.io_processor_plugins"
    (value,) = project["entry-points"][group].values()
    assert list(project["entry-points"][group]) == ["bayestune"]
    module, _, name = EntryPoint("bayestune", value, group).load()().rpartition(".")
    assert getattr(importlib.import_module(module), name) is plugin.Processor
    assert issubclass(plugin.Processor, vllm_stand_in.IOProcessor)
    assert any(one.startswith("vllm>=0.33") for one in project["optional-dependencies"]["vllm"])


def test_without_vllm_it_says_what_to_install_and_where() -> None:
    vllm_stand_in.forget()
    with pytest.raises(ImportError, match=r"environment of the server: pip install 'bayestune\[vl"):
        importlib.import_module("bayestune.serve.vllm")


def test_sidecars_are_named_by_the_environment(plugin, processor, exported, tmp_path) -> None:
    with pytest.raises(ConfigError, match="BAYESTUNE_SIDECARS names no side-car: set it to NAME="):
        processor()
    assert list(plugin.open_sidecars(f"'{exported}' other={exported}/posterior")) == [
        "topics",
        "other",
    ]
    with pytest.raises(ConfigError, match="names 'a' twice"):
        plugin.open_sidecars(f"a={exported} a={exported}")
    with pytest.raises(StoreError, match=r"bayestune\.json is missing"):
        processor(a=tmp_path)
    (tmp_path / "sample-0").mkdir()
    with pytest.raises(StoreError, match=r"holds several draws; open one of them"):
        processor(a=tmp_path)


# what is asked and answered ------------------------------------------------------------------


def test_answers_are_those_of_the_model(server, trained) -> None:
    found = ask(server, {"inputs": TEXTS})
    assert set(found) == set(RECORDED["pooling_response"]["data"])
    assert found["model"] == "bayes" and len(found["version"]) == 16
    same(found["predictions"], offline(trained))
    assert [line["id"] for line in found["predictions"]] == [1, 2, 3]
    (params,) = server.params
    assert params == PoolingParams(use_activation=False, task="embed")
    same(ask(server, {"inputs": TEXTS[2]})["predictions"], offline(trained, TEXTS[2:]))


def test_the_recorded_request_is_answered(server, trained) -> None:
    asked = RECORDED["pooling_request"]
    found = asyncio.run(server.online(asked, "recorded"))
    assert set(found) == set(RECORDED["pooling_response"])
    texts = asked["data"]["inputs"]
    ends = trained.readout.intervals(trained.observe(texts), 0.8)
    for i, (line, whole) in enumerate(
        zip(found["data"]["predictions"], offline(trained, texts), strict=True)
    ):
        assert len(line["probs"]) == len(line["intervals"]) == 2
        for name, (low, high) in line["intervals"].items():
            k = trained.labels.names.index(name)
            assert [low, high] == pytest.approx(ends[:, i, k].tolist(), rel=1e-4, abs=1e-5)
            assert line["probs"][name] == pytest.approx(whole["probs"][name], rel=1e-5, abs=1e-6)


def test_long_texts_are_cut_as_in_training(server, trained) -> None:
    text = "find my parcel again please " * 400
    (line,) = ask(server, {"inputs": [text]})["predictions"]
    assert line["truncated"] is True
    same([line], offline(trained, [text]))


def test_choices_that_a_row_has_not_stay_without(processor, asking, choice) -> None:
    model, folder = asking
    rows = [
        {"id": f"q{i}", "question": one.question, "choices": list(one.choices)}
        for i, one in enumerate(choice.select(range(6)))
    ]
    found = ask(Server(processor(a=folder), engine(model)), {"inputs": rows})["predictions"]
    assert [line["id"] for line in found] == [row["id"] for row in rows]
    same(found, offline(model, rows))
    assert any(line["probs"]["D"] == 0 for line in found)


def test_offline_it_answers_without_a_request_id(server, trained) -> None:
    (found,) = server.offline({"data": {"inputs": TEXTS}})
    same(found.outputs["predictions"], offline(trained))
    assert len(server.params) == 1 + len(TEXTS)  # one a prompt, the probe's among them
    assert set(map(repr, server.params)) == {repr(PoolingParams(False, None, "embed"))}
    (again,) = server.offline({"data": {"inputs": TEXTS, "top": 1}})
    assert len(again.outputs["predictions"][0]["probs"]) == 1


@pytest.mark.parametrize(
    "params", [PoolingParams(use_activation=True), PoolingParams(dimensions=8)]
)
def test_offline_other_states_are_refused(server, params) -> None:
    with pytest.raises(ConfigError, match="leave out use_activation and dimensions"):
        server.offline({"data": {"inputs": TEXTS}}, params)


# many at a time ------------------------------------------------------------------------------


def test_requests_do_not_get_each_others_rows(processor, asking, trained, exported, choice) -> None:
    """Rows with other masks and ids, in any order, some of the same id."""
    model, folder = asking
    server = Server(processor(a=folder), engine(model))
    rows = [
        {"id": i, "question": one.question, "choices": list(one.choices)}
        for i, one in enumerate(choice)
    ]
    parts = [rows[i : i + 3] for i in range(0, 24, 3)]

    async def all_of_them() -> list[Any]:
        asked = [
            server.online({"data": {"inputs": part}}, f"{i % 3}", delay=0.001 * (7 - i))
            for i, part in enumerate(parts)
        ]
        return await asyncio.gather(*asked)

    for part, found in zip(parts, asyncio.run(all_of_them()), strict=True):
        assert [line["id"] for line in found["data"]["predictions"]] == [row["id"] for row in part]
        same(found["data"]["predictions"], offline(model, part))
    assert len(server.processor._pending) == 0


def test_one_id_and_the_same_rows_twice(server) -> None:
    async def twice(second: dict[str, Any]) -> list[Any]:
        first = {"data": {"inputs": TEXTS}}
        return await asyncio.gather(
            server.online(first, "x", delay=0.02),
            server.online({"data": {"inputs": TEXTS, **second}}, "x", delay=0.01),
            return_exceptions=True,
        )

    one, other = asyncio.run(twice({}))
    assert one["data"] == other["data"]
    one, refused = asyncio.run(twice({"top": 1}))
    assert len(one["data"]["predictions"][0]["probs"]) == 3
    assert isinstance(refused, DataError) and "an id of its own" in str(refused)
    assert len(server.processor._pending) == 0


def test_what_never_comes_back_is_forgotten(server) -> None:
    pending = server.processor._pending

    async def some() -> None:
        body = {"data": {"inputs": TEXTS}}
        with pytest.raises(RuntimeError, match="the engine failed"):
            await server.online(body, "x", fails=True)
        await asyncio.sleep(0)
        assert len(pending) == 0
        gone = asyncio.create_task(server.online(body, "x", delay=5))
        await asyncio.sleep(0.01)
        assert len(pending) == 1
        gone.cancel()
        await asyncio.sleep(0.01)
        assert len(pending) == 0

    asyncio.run(some())


def test_prompts_that_the_server_cut_are_noticed(processor, exported, trained) -> None:
    cut = Server(processor(a=exported), engine(trained), lambda ids: ids[-3:])
    with pytest.raises(ConfigError, match="leave truncate_prompt_tokens, truncation_side and pad"):
        ask(cut, {"inputs": TEXTS})
    with pytest.raises(ConfigError, match="did not run the prompts"):
        cut.processor.post_process([], request_id="never asked")


# the wrong adapter ---------------------------------------------------------------------------


def test_the_wrong_adapter_is_refused(processor, exported, trained, trained_mle) -> None:
    """vLLM does not say which adapter ran: the probe's state does."""
    bare = engine(trained)

    def without(prompts: list[list[int]]) -> torch.Tensor:
        with trained.backbone.peft_model.disable_adapter():
            trained.cache = None
            return bare(prompts)

    for run in (engine(trained_mle), without):
        with pytest.raises(ConfigError, match="is another one than the side-car's"):
            ask(Server(processor(bayes=exported), run), {"inputs": TEXTS})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s / s.norm(dim=-1, keepdim=True), ConfigError, "scaled to length 1"),
        (lambda s: s[:, :16], ConfigError, "states of 16 features, the side-car was made for 32"),
        (lambda s: s + float("nan"), NumericsError, "NaN or infinite"),
    ],
)
def test_other_states_are_refused(processor, exported, trained, change, error, words) -> None:
    run = engine(trained)
    with pytest.raises(error, match=words):
        ask(Server(processor(a=exported), lambda p: change(run(p))), {"inputs": TEXTS})


def test_rounded_states_are_taken(processor, exported, trained, monkeypatch) -> None:
    run = engine(trained)
    half = Server(processor(a=exported), lambda p: run(p).bfloat16().float())
    assert len(ask(half, {"inputs": TEXTS})["predictions"]) == 3
    monkeypatch.setenv("BAYESTUNE_PROBE_TOLERANCE", "1e-5")
    strict = Server(processor(a=exported), half.run)
    with pytest.raises(ConfigError, match="base, pooling or precision differ"):
        ask(strict, {"inputs": TEXTS})
    for wrong in ("many", "0", "nan"):
        monkeypatch.setenv("BAYESTUNE_PROBE_TOLERANCE", wrong)
        with pytest.raises(ConfigError, match="expected a number above 0"):
            processor(a=exported)


def test_several_side_cars_are_told_apart(processor, exported, asking, trained) -> None:
    many = processor(topics=exported, asking=asking[1])
    server = Server(many, engine(trained))
    same(ask(server, {"inputs": TEXTS, "model": "topics"})["predictions"], offline(trained))
    with pytest.raises(DataError, match=r"data\.model: several side-cars .* 'topics', 'asking'"):
        ask(server, {"inputs": TEXTS})
    row = {"question": "find parcel", "choices": ["delivery", "password"]}
    with pytest.raises(ConfigError, match="is another one than the side-car's"):
        ask(server, {"inputs": [row], "model": "asking"})


# bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("login", "data: expected an object"),
        ({}, "data.inputs: Field required"),
        ({"inputs": []}, "data.inputs: there is nothing to predict"),
        ({"inputs": 3}, "data.inputs: Expected a text or a list of them"),
        ({"inputs": ["a", 3]}, "data.inputs.1: Expected a text or an object"),
        ({"inputs": ["a", {"text": 3}]}, "data.inputs.1: "),
        ({"inputs": [{"words": "a"}]}, "data.inputs.0: "),
        ({"inputs": ["a" * 100_001]}, "data.inputs.0: it has 1000"),
        ({"inputs": ["a"] * 257}, "data.inputs: 257 rows; a request may have 256"),
        ({"inputs": "a", "level": 1.0}, "data.level: "),
        ({"inputs": "a", "top": 0}, "data.top: "),
        ({"inputs": "a", "intervals": "yes"}, "data.intervals: "),
        ({"inputs": "a", "max_risk": 0.1}, "data.max_risk: an export is not calibrated"),
        ({"inputs": "a", "model": "b"}, "data.model: 'b' is no side-car; expected 'bayes'"),
        ({"inputs": "a", "modle": "b"}, "data.modle: "),
    ],
)
def test_bad_data_names_the_field(server, data, words) -> None:
    with pytest.raises(ValueError, match=words):  # which vLLM answers with 400
        ask(server, data)
