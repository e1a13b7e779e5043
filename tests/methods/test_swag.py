"""SWAG on a tiny model: trained, averaged, drawn from, stored and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from number_tasks import number_task
from torch import Tensor

from bayestune.cli.estimate import estimate
from bayestune.errors import ConfigError
from bayestune.model import BayesModel, build
from bayestune.progress import Advance, silent
from bayestune.store import load
from bayestune.training import fit
from bayestune.weights import SwagWeights

OPTIONS: dict[str, Any] = {"kl": 0.0, "epochs": 10}


@pytest.fixture(scope="module")
def model(make, clear, tmp_path_factory) -> BayesModel:
    model = make("swag", **OPTIONS)
    fit(model, clear, out=tmp_path_factory.mktemp("swag") / "run", progress=silent)
    return model


def probs(model: BayesModel, texts: Any, batch_size: int = 32, **predict: Any) -> Tensor:
    """Predict under other options of the section ``predict``, or another seed."""
    recipe = model.recipe
    seed = predict.pop("seed", recipe.seed)
    model.recipe = replace(recipe, seed=seed, predict=replace(recipe.predict, **predict))
    try:
        return model.predict(texts, batch_size).probs
    finally:
        model.recipe = recipe


def test_it_learns_and_knows_what_its_path_left_open(model, clear, clear_test) -> None:
    predicted = model.predict(clear_test)
    right = predicted.indices == torch.tensor(clear_test.targets)
    assert right.float().mean() > 0.9
    assert (predicted.epistemic > 0).all() and predicted.epistemic.mean() > 1e-3
    chosen = model.notes["chosen"]
    assert chosen["weights"]["snapshots"] == 20
    assert chosen["weights"]["std"]["adapter"] > 1e-4 and chosen["weights"]["std"]["head"] > 1e-3


def test_the_weights_are_the_average_over_the_snapshots(make, clear, monkeypatch) -> None:
    model = make("swag", **{**OPTIONS, "epochs": 3})
    weights = model.backbone.weights
    assert isinstance(weights, SwagWeights)
    names = {id(site.weight) for site in weights.sites.values()}
    trained = {id(p) for p in model.backbone.parameters() if p.requires_grad}
    assert names == trained  # A, B and the head: nothing that is trained is left out
    seen: list[list[Tensor]] = []
    after = weights.after_step

    def note(step: int, total: int) -> None:
        before = weights.collected
        after(step, total)
        if weights.collected > before:
            seen.append([s.weight.detach().double() for s in weights.sites.values()])

    monkeypatch.setattr(weights, "after_step", note)
    run = fit(model, clear, progress=silent)
    assert len(seen) == run.chosen["weights"]["snapshots"] > 5
    for site, path in zip(weights.sites.values(), zip(*seen, strict=True), strict=True):
        mean = torch.stack(path).mean(0)
        torch.testing.assert_close(site.weight.detach().double(), mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(site.weight.detach(), path[-1].float())


def test_draws_depend_on_the_seed_and_on_nothing_else(model, clear_test) -> None:
    drawn = probs(model, clear_test)
    mean = probs(model, clear_test, samples=0)
    assert torch.equal(
        mean,
        model.method.predict(  # the plain forward pass
            model.head, model.features(clear_test), model.recipe.predict
        ).probs,
    )
    assert (drawn - mean).abs().max() > 1e-3
    assert (drawn - probs(model, clear_test, seed=5)).abs().max() > 1e-4
    assert torch.equal(drawn, probs(model, clear_test))
    few = clear_test.select(range(0, 150, 7))
    torch.testing.assert_close(probs(model, few, 3), drawn[::7], rtol=0, atol=1e-5)


def test_a_scale_of_two_doubles_the_covariance(make, clear) -> None:
    std = {}
    for scale in (1.0, 2.0):
        model = make("swag", weights={"scale": scale}, **{**OPTIONS, "epochs": 2})
        std[scale] = fit(model, clear, progress=silent).chosen["weights"]["std"]
    assert std[2.0] == pytest.approx({k: 2**0.5 * v for k, v in std[1.0].items()})


def test_a_fitted_temperature_scales_the_noise_of_the_head_too(make, clear, clear_test) -> None:
    drawn = {}
    for temperature in (1.0, 3.0):
        model = make("swag", **{**OPTIONS, "epochs": 3})
        fit(model, clear, progress=silent, temperature=temperature)
        drawn[temperature] = model.observe(clear_test).logits
    torch.testing.assert_close(drawn[1.0] / 3, drawn[3.0], rtol=1e-4, atol=1e-5)


def test_stored_and_loaded_it_predicts_the_same_bits(model, clear_test, tmp_path) -> None:
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(loaded.predict(clear_test).probs, model.predict(clear_test).probs)
    assert loaded.recipe == model.recipe


@pytest.mark.parametrize("examples", [340, 860])
def test_interrupted_and_resumed_it_is_the_same_run(make, clear, tmp_path, examples) -> None:
    # 108 rows an epoch: before the first snapshot, which comes halfway, and after it.
    @contextmanager
    def stop(label: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            if label == "training" and done >= examples:
                raise KeyboardInterrupt

        yield advance

    fit(make("swag", **OPTIONS), clear, out=tmp_path / "whole", progress=silent)
    with pytest.raises(KeyboardInterrupt):
        fit(make("swag", **OPTIONS), clear, out=tmp_path / "run", progress=stop)
    fit(make("swag", **OPTIONS), clear, out=tmp_path / "run", progress=silent, resume=True)
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        a, b = (tmp_path / run / "model" / name for run in ("whole", "run"))
        assert a.read_bytes() == b.read_bytes(), name


def test_encoders_and_choices_are_drawn_for_too(bert_base, pairs, make, choice) -> None:
    for model, task in (
        (build("swag", str(bert_base), pairs, rank=4, layers="all", epochs=3), pairs),
        (make("swag", labels=choice, **{**OPTIONS, "epochs": 3}), choice),
    ):
        fit(model, task, progress=silent)
        predicted = model.predict(task)
        assert (predicted.epistemic > 0).all()
        torch.testing.assert_close(predicted.probs.sum(1), torch.ones(len(task)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter.kind": "polar"}, "swag is about LoRA's factors; adapter.kind=polar has none"),
        ({"head.kind": "gaussian"}, "use head.kind=linear"),
        ({"refresh": "block"}, "refresh=none"),
        ({"keep": "best"}, "train.keep=last"),
        ({"patience": 2}, "train.patience=0"),
        ({"weights.columns": 1}, "weights.columns is 1; expected at least 2"),
        ({"weights.start": 1.0}, r"weights.start is 1.0; expected a share in \[0, 1\)"),
        ({"weights.scale": 0.0}, "predict.samples=0 is the mean"),
    ],
)
def test_what_it_does_not_do_is_refused_when_it_is_built(make, options, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make("swag", **options)


def test_too_few_steps_are_refused_before_training(make, clear, tmp_path) -> None:
    for changes in ({"epochs": 1, "batch_size": 400}, {"max_steps": 1}):
        model = make("swag", **changes)
        for refuse in (
            lambda model=model: fit(model, clear, out=tmp_path / "run", progress=silent),
            lambda model=model: estimate(model, clear, None),
        ):
            with pytest.raises(ConfigError, match="SWAG needs two snapshots or more"):
                refuse()
    assert not (tmp_path / "run").exists()


def test_what_fit_may_change_is_checked_again(make, clear) -> None:
    with pytest.raises(ConfigError, match=r"train\.keep=last"):
        fit(make("swag", **OPTIONS), clear, keep="best", progress=silent)


def test_numbers_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="swag predicts classes"):
        make("swag", labels=number_task(20))
