"""Bayesian-LoRA, trained on a tiny model: what it delivers, what it stores, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import bayestune as bt
from bayestune.errors import ConfigError
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit

#: Enough of an adapter to see it on a tiny model.
OPTIONS = {"lr": 1e-2, "epochs": 8}


@pytest.fixture(scope="module")
def fitted(make, clear, tmp_path_factory) -> tuple[BayesModel, Path]:
    """A model trained on the clear task, and its run."""
    out = tmp_path_factory.mktemp("bayesian_lora") / "run"
    model = make("bayesian_lora", **OPTIONS)
    fit(model, clear, out=out, progress=silent)
    return model, out


def centres(model: BayesModel) -> dict[str, Tensor]:
    weights = model.backbone.weights
    return {name: weights.factor(name).centre().detach() for name in weights.sites}  # pyright: ignore


def test_more_noise_in_the_posterior_is_more_uncertainty(fitted, clear_test) -> None:
    model, out = fitted
    loaded = bt.load(out)
    with torch.no_grad():
        for name, parameter in loaded.backbone.weights.named_parameters():  # pyright: ignore
            if name.endswith(("std_logit", "noise_logit")):
                parameter.sub_(10.0)  # sd and λ → 0
    assert loaded.predict(clear_test).epistemic.mean() < 1e-6
    assert model.predict(clear_test).epistemic.mean() > 1e-3


def test_the_adapter_holds_the_centre_and_has_moved(fitted) -> None:
    model, _ = fitted
    weights = model.backbone.weights
    assert len(weights.sites) == 8  # A and B of query and value, twice
    for name, value in centres(model).items():
        assert torch.equal(weights.sites[name].weight, value)
        assert not weights.sites[name].weight.requires_grad
        assert float(value.norm()) > 0.01


def test_layers_of_the_same_shape_start_apart_and_seeds_matter(make) -> None:
    model, again, other = (
        make("bayesian_lora"),
        make("bayesian_lora"),
        make("bayesian_lora", seed=1),
    )
    found = [centres(m) for m in (model, again, other)]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])
        if name.endswith(".B"):
            assert not value.any()  # ΔW starts at 0
        else:
            assert not torch.equal(value, found[2][name])
            same = [n for n, v in found[0].items() if n != name and torch.equal(v, value)]
            assert not same


def test_saved_and_loaded_it_predicts_the_same_bits(fitted, clear_test) -> None:
    model, out = fitted
    loaded = bt.load(out)
    assert torch.equal(loaded.predict(clear_test).probs, model.predict(clear_test).probs)
    for name, value in centres(model).items():
        assert torch.equal(loaded.backbone.weights.sites[name].weight, value)  # pyright: ignore


def test_the_divergence_is_weighed_and_dropout_is_off_at_prediction(make, clear) -> None:
    model = make("bayesian_lora", dropout=0.5, **OPTIONS)
    run = fit(model, clear, progress=silent, epochs=1)
    assert run.history[0]["kl"] > 100 and run.chosen["kl"] == 1.0
    first = model.predict(clear).probs
    assert torch.equal(model.predict(clear).probs, first)


def test_the_flow_may_be_left_out(make, clear) -> None:
    model = make("bayesian_lora", weights={"flow": 0})
    assert not [n for n, _ in model.backbone.weights.named_parameters() if "flow" in n]
    fit(model, clear, progress=silent, epochs=1)
    assert bool(torch.isfinite(model.predict(clear).probs).all())


def test_half_precision_is_the_backbones_alone(make, clear) -> None:
    model = make("bayesian_lora", dtype="bfloat16", **OPTIONS)
    fit(model, clear.select(range(32)), progress=silent, epochs=1)
    dtypes = {p.dtype for p in model.backbone.parameters() if p.requires_grad}
    assert dtypes == {torch.float32} and model.backbone.dtype == torch.bfloat16
    assert bool(torch.isfinite(model.predict(clear).probs).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"size": 0}}, "size of at least 1"),
        ({"weights": {"flow": -1}}, "flow of 0 or more"),
        ({"weights": {"prior_scale": 0.0}}, "weights.prior_scale is 0.0; expected above 0"),
        ({"weights": {"max_std": 2.0}}, "weights.max_std is 2.0; expected above weights.start"),
        ({"weights": {"start": 0.05}}, "weights.max_noise is 0.03; expected above weights.start"),
        ({"adapter": {"kind": "polar"}}, "adapter.kind=polar has none"),
    ],
)
def test_what_it_cannot_do_is_refused(make, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make("bayesian_lora", **options)
