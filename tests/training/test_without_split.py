"""An architecture that cannot be run in two halves is trained without the prefix cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from bayestune.backbone import Backbone
from bayestune.data import Task
from bayestune.errors import ModelError
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit


@pytest.fixture
def unsplittable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Backbone, batch: Any) -> None:
        raise ModelError("cannot be run in two halves")

    monkeypatch.setattr(Backbone, "check_split", refuse)
    monkeypatch.setattr(Backbone, "enter", None)
    monkeypatch.setattr(Backbone, "resume", None)


@pytest.mark.usefixtures("unsplittable")
def test_auto_says_so_and_trains(
    make: Callable[..., BayesModel], clear: Task, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    with caplog.at_level(logging.WARNING):
        run = fit(model, clear, epochs=1, progress=silent)
    assert "without the prefix cache" in caplog.text
    assert len(run.history) == 1


@pytest.mark.usefixtures("unsplittable")
def test_on_is_an_error(make: Callable[..., BayesModel], clear: Task) -> None:
    with pytest.raises(ModelError, match="two halves"):
        fit(make(), clear, epochs=1, cache={"prefix": "on"}, progress=silent)
