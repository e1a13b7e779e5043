"""A small suite on a tiny model, and a benchmark of it that was run once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import foreign_texts, topic_rows

from bayestune import metrics
from bayestune.bench import Plan, Suite, read_suite, run

#: What the tests take of the resamples that intervals are made of, which take most of the time.
RESAMPLES = 20


@contextmanager
def few_resamples() -> Iterator[None]:
    """Make intervals quickly; what they are is tested where they are made."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(metrics.bootstrap_interval, resamples=RESAMPLES)
        patch.setattr(metrics, "bootstrap_interval", quick)
        yield


@pytest.fixture(autouse=True)
def quick_intervals() -> Iterator[None]:
    """As `few_resamples`, in every test here."""
    with few_resamples():
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows of the small suite."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "train": topic_rows(90),
        "test": topic_rows(40, 2, wrong=0.2),
        "oos": [{"text": text} for text in foreign_texts(12)],
    }
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return folder


@pytest.fixture(scope="session")
def content(llama_base: Path) -> dict[str, Any]:
    """The small suite as its file would hold it; copy before you change it."""
    return {
        "recipe": {
            "model": str(llama_base),
            "adapter": {"rank": 4, "layers": "top:2"},
            "train": {"epochs": 1, "head_lr": 5e-2},
        },
        "rates": {"lora": [1e-3, 2e-2], "polar": [4e-3, 2e-2]},
        "seeds": 2,
        "tasks": {
            "topics": {
                "train": "train.jsonl",
                "test": "test.jsonl",
                "ood": {"foreign": "oos.jsonl"},
                "train_rows": 45,
                "val_rows": 20,
            }
        },
        "rows": {
            "mle": None,
            "cooled": {"method": "temperature", "start": "mle"},
            "borrowed": {"method": "mle", "recipe": {"train": {"epochs": 2}}, "rates": "mle"},
            "polar_vbll": {"recipe": {"train": {"kl": 1.0}}},
        },
    }


@pytest.fixture(scope="session")
def suite(content: dict[str, Any]) -> Suite:
    """The small suite."""
    return read_suite(content, "small")


@pytest.fixture
def make_plan(suite: Suite, tmp_path: Path) -> Callable[..., Plan]:
    """Plan the small suite, or another, in an empty folder."""

    def make(of: Suite = suite, out: Path = tmp_path / "out", seeds: int = 2, rows: Any = None):
        return Plan.of(of, out, list(of.tasks), rows or list(of.rows), seeds)

    return make


@pytest.fixture(scope="session")
def complete(suite: Suite, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The small suite, all trainings done in this process; do not change it."""
    plan = Plan.of(suite, tmp_path_factory.mktemp("complete"), ["topics"], list(suite.rows), 2)
    with few_resamples():
        run(plan, data)
    return plan
