"""The frozen-prefix cache makes training quicker and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit


@pytest.fixture(scope="module")
def runs(make, clear):
    """The same training with the cache in memory, in a file, too small for all, and without."""

    def train(**cache: Any) -> tuple[BayesModel, list[dict[str, Any]], int]:
        model = make(cache=cache)
        passes = 0
        inside: Any = model.backbone.layers[0].mlp

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        handle = inside.register_forward_pre_hook(count)
        run = fit(model, clear, progress=silent)
        handle.remove()
        return model, run.history, passes

    return {
        "memory": train(),
        "file": train(max_gb=0.0),
        "some": train(max_gb=1e-4, max_disk_gb=0.0),
        "off": train(prefix="off"),
    }


@pytest.mark.parametrize("kind", ["memory", "file", "some"])
def test_a_cached_run_is_the_run_without(runs, clear_test, kind) -> None:
    model, history, _ = runs[kind]
    plain, expected, _ = runs["off"]
    assert len(history) == len(expected) == 4
    for row, reference in zip(history, expected, strict=True):
        for key in ("train_nll", "kl", "grad_norm", "val_nll", "val_accuracy", "stable_rank"):
            assert row[key] == pytest.approx(reference[key], rel=1e-4, abs=1e-5), key
    a, b = model.predict(clear_test), plain.predict(clear_test)
    torch.testing.assert_close(a.probs, b.probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.epistemic, b.epistemic, rtol=0, atol=1e-5)


def test_the_cache_spares_the_frozen_layers(runs) -> None:
    passes = {kind: run[2] for kind, run in runs.items()}
    assert passes["memory"] == passes["file"] < passes["off"] / 4
    assert passes["memory"] < passes["some"]


def test_a_fit_leaves_no_cache_behind_unless_one_was_given(runs, make, clear) -> None:
    assert all(model.cache is None for model, *_ in runs.values())
    model = make(epochs=1)
    cache = model.cache = model.new_cache()
    fit(model, clear, progress=silent)
    assert model.cache is cache and len(cache) == len({e.text for e in clear})


def test_nothing_is_cached_where_every_layer_is_adapted(make) -> None:
    assert make(layers="all").new_cache() is None
    assert make(**{"cache.prefix": "off"}).new_cache() is None
