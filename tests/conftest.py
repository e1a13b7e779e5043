"""Shared fixtures: tiny bases, toy tasks, models trained on them once per session, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from bayestune.data import Task
    from bayestune.model import BayesModel

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the Hub
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

#: Small enough for a training run of about half a second.
QUICK: dict[str, Any] = {"rank": 4, "layers": "top:2", "kl": 1.0, "epochs": 4, "head_lr": 5e-2}

#: Nothing that needs a display, a sandbox that containers forbid, or a network.
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices are slower on several threads, and their sums would depend on the machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of 4 layers and 32 features with an untied LM head."""
    from tiny_bases import save_llama

    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model whose LM head is its input embeddings."""
    from tiny_bases import save_llama

    return save_llama(tmp_path_factory.mktemp("tied"), tied=True, seed=1, layers=2)


@pytest.fixture(scope="session")
def bert_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 2 layers and 32 features."""
    from tiny_bases import save_bert

    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def clear() -> Task:
    """120 texts of three topics, labelled without a mistake."""
    return _task("topic_rows", 120)


@pytest.fixture(scope="session")
def clear_test(clear: Task) -> Task:
    """150 more of them."""
    return _task("topic_rows", 150, 100, like=clear)


@pytest.fixture(scope="session")
def choice() -> Task:
    """36 questions with two, three or four choices."""
    return _task("choice_rows", 36)


@pytest.fixture(scope="session")
def levels() -> Task:
    """160 texts of four ordered classes."""
    return _task("level_rows", 160)


@pytest.fixture(scope="session")
def pairs() -> Task:
    """48 pairs of texts."""
    return _task("pair_rows", 48, text2="text2")


def _task(rows: str, *arguments: Any, **options: Any) -> Task:
    import toy_tasks

    from bayestune.data import Task

    return Task.from_rows(getattr(toy_tasks, rows)(*arguments), **options)


@pytest.fixture(scope="session")
def make(llama_base: Path, clear: Task) -> Callable[..., BayesModel]:
    """Build a small model; every argument of `bayestune.build` may be given instead."""
    from bayestune import methods
    from bayestune.model import build

    def builder(method: str = "polar_vbll", labels: Any = None, **overrides: Any) -> BayesModel:
        options = {"base": str(llama_base), **QUICK, **overrides}
        defaults = methods.get(method).defaults.get("train", {})
        if defaults.get("kl") == 0 or overrides.get("head", {}).get("kind") == "linear":
            options["kl"] = overrides.get("kl", 0.0)  # there is nothing for it to weigh
        return build(method, labels=clear if labels is None else labels, **options)

    return builder


@pytest.fixture(scope="session")
def trained(
    make: Callable[..., BayesModel], clear: Task, tmp_path_factory: pytest.TempPathFactory
) -> BayesModel:
    """PoLAR-VBLL trained on the clear task, with its run in ``model.notes``; do not change it."""
    from bayestune.progress import silent
    from bayestune.training import fit

    model = make()
    fit(model, clear, progress=silent)
    return model


@pytest.fixture(scope="session")
def trained_mle(make: Callable[..., BayesModel], clear: Task) -> BayesModel:
    """LoRA with a linear head, trained on the clear task; do not change it."""
    from bayestune.progress import silent
    from bayestune.training import fit

    model = make("mle", kl=0.0)
    fit(model, clear, progress=silent)
    return model


@pytest.fixture(scope="module")  # it holds an event loop, beside which no other one runs
def browser() -> Iterator[Browser]:
    """Chromium without a head, as installed; never downloaded."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium is installed; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
        except sync_api.Error as error:
            pytest.skip(f"chromium does not start: {str(error).splitlines()[0]}")
        yield started
        started.close()
