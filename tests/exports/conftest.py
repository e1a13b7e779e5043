"""Models of every kind that is exported, trained once per session; do not change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from number_tasks import number_task

from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit

#: Method, labels, base and options of every kind of model.
KINDS: dict[str, dict[str, Any]] = {
    "polar_vbll": {"refresh": "block"},
    "trained": {"refresh": "none", "adapter": {"targets": "all-linear"}},
    "mle": {"method": "mle", "adapter": {"alpha": 6.0}},
    "tied": {"base": "tied_base"},
    "bfloat16": {"base": "tied_base", "dtype": "bfloat16"},
    "pooled": {"head": {"pooling": "mean"}},
    "encoder": {"labels": "pairs", "base": "bert_base", "layers": "all"},
    "ordinal": {"labels": "levels", "head": {"kind": "ordinal"}},
    "generative": {"head": {"kind": "generative"}},
    "choice": {"labels": "choice", "refresh": "diagonal"},
    "number": {"labels": "numbers", "head": {"noise": "student"}},
    "spread": {"labels": "numbers", "head": {"noise": "heteroscedastic"}},
    "blob": {"method": "blob", "weights": {"init_std": 0.3}},
    "polar_blob": {"method": "polar_blob", "weights": {"init_std": 0.5}},
    "scalabl": {"method": "scalabl", "weights": {"init_std": 0.5}},
    "tfb": {"method": "tfb", "weights": {"tolerance": 0.05}},
    "bayesian_lora": {"method": "bayesian_lora"},
    "swag": {"method": "swag", "weights": {"scale": 20.0}},
    "ivon": {"method": "ivon"},
    "ensemble": {"method": "ensemble", "weights": {"members": 3}},
    "mc_dropout": {"method": "mc_dropout"},
    "laplace_lora": {"method": "laplace_lora"},
    "c_lora": {"method": "c_lora"},
}


@pytest.fixture(scope="session")
def numbers():
    return number_task(80)


@pytest.fixture(scope="session")
def kind(make, request) -> Callable[[str], BayesModel]:
    """Return a trained model of a kind."""
    made: dict[str, BayesModel] = {}

    def get(name: str) -> BayesModel:
        if name not in made:
            options = dict(KINDS[name])
            task = request.getfixturevalue(options.pop("labels", "clear"))
            if "base" in options:
                options["base"] = str(request.getfixturevalue(options["base"]))
            made[name] = make(labels=task, epochs=3, **options)
            fit(made[name], task, progress=silent)
        return made[name]

    return get


@pytest.fixture(scope="session")
def run(kind, tmp_path_factory) -> Path:
    """The stored PoLAR-VBLL model."""
    folder = tmp_path_factory.mktemp("run") / "model"
    kind("polar_vbll").save(folder)
    return folder
