"""Small models of every kind that is saved, and their folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit

#: Method, labels, base and options of every kind of model.
KINDS: dict[str, dict[str, Any]] = {
    "diagonal": {"refresh": "none"},
    "dense": {"refresh": "block"},
    "point": {"method": "mle"},
    "refreshed point": {"method": "mle", "refresh": "block"},
    "choice": {"labels": "choice", "refresh": "diagonal"},
    "generative": {"head": {"kind": "generative"}},
    "generative choice": {"labels": "choice", "head": {"kind": "generative", "joint": True}},
    "ordinal": {"labels": "levels", "head": {"kind": "ordinal"}, "refresh": "block"},
    "encoder": {"labels": "pairs", "base": "bert_base", "layers": "all"},
    "point encoder": {"method": "mle", "base": "bert_base", "layers": "all"},
}


@pytest.fixture(scope="session")
def saved_kind(make, request, tmp_path_factory) -> Callable[[str], tuple[BayesModel, Path]]:
    """Return a trained model of a kind and the run's folder, made once per session."""
    made: dict[str, tuple[BayesModel, Path]] = {}

    def get(kind: str) -> tuple[BayesModel, Path]:
        if kind not in made:
            options = dict(KINDS[kind])
            task = request.getfixturevalue(options.pop("labels", "clear"))
            if "base" in options:
                options["base"] = str(request.getfixturevalue(options["base"]))
            model = make(labels=task, epochs=2, **options)
            out = tmp_path_factory.mktemp("saved") / "run"
            fit(model, task, out=out, progress=silent)
            made[kind] = model, out
        return made[kind]

    return get


@pytest.fixture
def copied(saved_kind, tmp_path) -> Callable[..., Path]:
    """Return a copy of the model's folder that a test may damage."""

    def copy(kind: str = "diagonal") -> Path:
        return Path(shutil.copytree(saved_kind(kind)[1] / "model", tmp_path / "model"))

    return copy
