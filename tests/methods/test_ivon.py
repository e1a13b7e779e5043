"""IVON on a tiny model: trained by its own optimiser, drawn from, stored and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from number_tasks import number_task
from torch import Tensor
from toy_tasks import topic_rows

from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.model import BayesModel, build
from bayestune.optim import Ivon
from bayestune.progress import Advance, silent
from bayestune.store import load
from bayestune.training import Run, fit
from bayestune.weights import IvonWeights

OPTIONS: dict[str, Any] = {"kl": 0.1, "epochs": 10, "head_lr": 2e-2}
FILES = ("adapter_model.safetensors", "posterior.safetensors")


@pytest.fixture(scope="module")
def trained(make, clear, tmp_path_factory) -> tuple[BayesModel, Run]:
    model = make("ivon", **OPTIONS)
    return model, fit(model, clear, out=tmp_path_factory.mktemp("ivon") / "run", progress=silent)


@pytest.fixture(scope="module")
def model(trained) -> BayesModel:
    return trained[0]


def probs(model: BayesModel, texts: Any, batch_size: int = 32, **predict: Any) -> Tensor:
    """Predict under other options of the section ``predict``, or another seed."""
    recipe = model.recipe
    seed = predict.pop("seed", recipe.seed)
    model.recipe = replace(recipe, seed=seed, predict=replace(recipe.predict, **predict))
    try:
        return model.predict(texts, batch_size).probs
    finally:
        model.recipe = recipe


def test_it_learns_and_reports_whether_its_curvature_moved(trained, clear_test) -> None:
    model, run = trained
    predicted = model.predict(clear_test)
    right = predicted.indices == torch.tensor(clear_test.targets)
    assert right.float().mean() > 0.9
    assert (predicted.epistemic > 0).all() and predicted.epistemic.mean() > 1e-3
    moved = run.chosen["weights"]["curvature"]
    assert moved.keys() == {"adapter", "head"} and all(v > 0 and v != 1 for v in moved.values())
    assert 0.008 < run.chosen["weights"]["std"]["adapter"] < 0.02  # it started at 0.01
    assert run.history[0]["kl"] > 0
    assert run.history[-1]["train_nll"] < 0.5 * run.history[0]["train_nll"]


def test_a_larger_divergence_leaves_more_uncertainty(make, clear, clear_test) -> None:
    epistemic = {}
    for kl in (0.1, 1.0):
        model = make("ivon", **{**OPTIONS, "kl": kl, "epochs": 6})
        fit(model, clear, progress=silent)
        epistemic[kl] = float(model.predict(clear_test).epistemic.mean())
    assert epistemic[1.0] > 1.2 * epistemic[0.1]


def test_everything_that_is_trained_is_drawn_for_each_step_and_put_back(
    make, clear, monkeypatch
) -> None:
    model = make("ivon", **{**OPTIONS, "epochs": 1})
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    weights = model.backbone.weights
    assert isinstance(weights, IvonWeights)
    assert {id(p) for p in trained} == {id(s.weight) for s in weights.sites.values()}
    seen: list[list[Tensor]] = []
    loss = model.method.loss

    def note(head: Any, batch: Any) -> Any:
        seen.append([p.detach().clone() for p in trained])
        return loss(head, batch)

    model.method = replace(model.method, loss=note)
    entering: list[list[Tensor]] = []
    sampled = Ivon.sampled

    def enter(self: Ivon) -> Any:
        entering.append([p.detach().clone() for p in trained])
        return sampled(self)

    monkeypatch.setattr(Ivon, "sampled", enter)
    fit(model, clear, progress=silent)
    first = entering[::2]  # of the adapter; the head's follows it
    assert len(first) == len(seen) == 8
    for means, drawn in zip(first, seen, strict=True):
        z = torch.cat([(a - b).flatten() for a, b in zip(means, drawn, strict=True)])
        assert (z != 0).float().mean() > 0.99
    # Within a step nothing but the draw moves the weights: means move by the rate at most.
    for a, b in pairwise(first):
        assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) < 0.05


def test_draws_depend_on_the_seed_and_on_nothing_else(model, clear_test) -> None:
    drawn = probs(model, clear_test)
    mean = probs(model, clear_test, samples=0)
    assert (drawn - mean).abs().max() > 1e-3
    assert (drawn - probs(model, clear_test, seed=5)).abs().max() > 1e-3
    assert torch.equal(drawn, probs(model, clear_test))
    few = clear_test.select(range(0, 150, 7))
    torch.testing.assert_close(probs(model, few, 3), drawn[::7], rtol=0, atol=1e-5)


def test_the_best_epochs_deviations_come_with_its_mean(make, clear) -> None:
    wrong = Task.from_rows(topic_rows(60, 7, wrong=1.0), like=clear)  # learning makes it worse
    model = make("ivon", **{**OPTIONS, "epochs": 3})
    weights = model.backbone.weights
    assert isinstance(weights, IvonWeights)
    kept: list[Tensor] = []
    after = weights.after_step

    def note(step: int, total: int) -> None:
        after(step, total)
        if step % (total // 3) == 0:
            kept.append(torch.cat([model.head.weight.detach(), weights.std("head")]))

    weights.after_step = note  # pyright: ignore
    run = fit(model, clear, val=wrong, progress=silent)
    best = run.chosen["best_epoch"]
    assert best < 3 == len(kept)
    assert torch.equal(torch.cat([model.head.weight, weights.std("head")]), kept[best - 1])
    assert not torch.equal(weights.std("head"), kept[-1].chunk(2)[1])


def test_stored_and_loaded_it_predicts_the_same_bits(model, clear_test, tmp_path) -> None:
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(loaded.predict(clear_test).probs, model.predict(clear_test).probs)


def same(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / "model" / name).read_bytes() == (b / "model" / name).read_bytes(), name
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("examples", "keep"), [(250, "best"), (430, "last")])
def test_interrupted_and_resumed_it_is_the_same_run(
    make, clear, clear_test, tmp_path, examples, keep
) -> None:
    # 120 rows an epoch, four epochs: in the third, and in the last.
    @contextmanager
    def stop(label: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            if label == "training" and done >= examples:
                raise KeyboardInterrupt

        yield advance

    options = {**OPTIONS, "epochs": 4, "keep": keep}
    whole, run = tmp_path / "whole", tmp_path / "run"
    fit(make("ivon", **options), clear, val=clear_test, out=whole, progress=silent)
    with pytest.raises(KeyboardInterrupt):
        fit(make("ivon", **options), clear, val=clear_test, out=run, progress=stop)
    fit(make("ivon", **options), clear, val=clear_test, out=run, progress=silent, resume=True)
    same(whole, run)


def test_the_weight_of_the_divergence_may_be_chosen_by_held_out_rows(make, clear) -> None:
    model = make("ivon", **{**OPTIONS, "epochs": 4, "kl": "auto", "hold_out": 0.2})
    run = fit(model, clear, progress=silent)
    assert len(run.chosen["kl_tried"]) == 3 and run.chosen["kl"] > 0
    fixed = make("ivon", **{**OPTIONS, "epochs": 4, "kl": run.chosen["kl"]})
    fit(fixed, clear.split(0.2, 0)[0], val=clear.split(0.2, 0)[1], progress=silent)
    assert torch.equal(model.head.weight, fixed.head.weight)
    for name in model.backbone.weights.sites:
        assert torch.equal(model.backbone.weights.std(name), fixed.backbone.weights.std(name))


def test_encoders_and_choices_are_drawn_for_too(bert_base, pairs, make, choice) -> None:
    for model, task in (
        (build("ivon", str(bert_base), pairs, rank=4, layers="all", epochs=3), pairs),
        (make("ivon", labels=choice, **{**OPTIONS, "epochs": 3}), choice),
    ):
        fit(model, task, progress=silent)
        predicted = model.predict(task)
        assert (predicted.epistemic > 0).all()
        torch.testing.assert_close(predicted.probs.sum(1), torch.ones(len(task)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter.kind": "polar"}, "ivon is about LoRA's factors; adapter.kind=polar has none"),
        ({"head.kind": "gaussian"}, "use head.kind=linear"),
        ({"refresh": "block"}, "refresh=none"),
        ({"kl": 0.0}, "without a posterior"),
        ({"schedule": "alternate"}, "train.schedule=joint"),
        ({"train.clip": 1.0}, "weights.clip bounds the step"),
        ({"train.weight_decay": 0.1}, r"weights\.prior_std"),
        ({"head.init_scale": 2.0}, "lower it"),
        ({"weights.init_std": 0.2}, r"less than weights\.prior_std \(0\.1\)"),
        ({"weights.beta2": 1.0}, r"weights\.beta2 is 1\.0"),
        ({"weights.ess": -1.0}, r"weights\.ess is -1\.0; expected above 0"),
    ],
)
def test_what_it_does_not_do_is_refused_when_it_is_built(make, options, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make("ivon", **options)


def test_numbers_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="ivon predicts classes"):
        make("ivon", labels=number_task(20))
