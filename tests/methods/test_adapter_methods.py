"""Methods whose adapter is random: the same promises of all of them, and what sets each apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_tasks import foreign_texts, number_rows

from bayestune import methods
from bayestune.config import to_mapping
from bayestune.data import Task
from bayestune.errors import ConfigError, ModelError
from bayestune.finalize import item_nll
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.store import load
from bayestune.training import fit

#: Methods that average over draws, with what makes their noise visible within half a second.
RANDOM: dict[str, dict[str, Any]] = {
    "blob": {"weights": {"init_std": 0.3}},
    "polar_blob": {"weights": {"init_std": 0.5}},
    "scalabl": {"weights": {"init_std": 0.5}},
    "tfb": {"weights": {"tolerance": 0.05}},
    "mc_dropout": {"dropout": 0.3},
    "ensemble": {"weights": {"members": 3}},
    "bayesian_lora": {},
    "c_lora": {"weights": {"init_std": 0.1}},
}
TRAIN = {"lr": 1e-2, "epochs": 6, "targets": "all-linear"}


@pytest.fixture(scope="module", params=sorted(RANDOM))
def drawn(request, make, clear) -> BayesModel:
    kl = 0.1 if KL(request.param) else 0.0
    model = make(request.param, **TRAIN, kl=kl, **RANDOM[request.param])
    fit(model, clear, progress=silent)
    return model


def KL(name: str) -> bool:
    return methods.recipe(name).train.kl != 0


def probs(model: BayesModel, texts, *, seed: int = 0, samples: Any = "auto", size: int = 32):
    """Predict with other draws, without touching the model."""
    before = model.recipe
    model.recipe = replace(before, seed=seed, predict=replace(before.predict, samples=samples))
    try:
        return model.predict(texts, batch_size=size)
    finally:
        model.recipe = before


def test_draws_are_what_is_random(drawn, clear_test):
    texts = clear_test.select(range(40))
    sampled, mean = probs(drawn, texts), probs(drawn, texts, samples=0)
    assert torch.equal(probs(drawn, texts).probs, sampled.probs)
    assert mean.epistemic.abs().max() == 0 and sampled.epistemic.mean() > 1e-5
    assert (sampled.probs - mean.probs).abs().max() > 1e-4
    if drawn.method.name != "ensemble":
        assert (probs(drawn, texts, seed=1).probs - sampled.probs).abs().max() > 1e-5
        assert probs(drawn, texts, samples=3).probs.ne(sampled.probs).any()
    assert torch.equal(probs(drawn, texts, seed=1, samples=0).probs, mean.probs)
    torch.testing.assert_close(sampled.entropy, sampled.aleatoric + sampled.epistemic)


def test_company_changes_nothing(drawn, clear_test):
    texts = clear_test.select(range(24))
    together = probs(drawn, texts).probs
    torch.testing.assert_close(probs(drawn, texts, size=1).probs, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        probs(drawn, texts.select([7, 3])).probs, together[[7, 3]], rtol=0, atol=1e-5
    )


def test_it_learns_and_knows_less_of_what_it_has_not_seen(drawn, clear_test):
    inside, outside = drawn.predict(clear_test), drawn.predict(foreign_texts(60))
    right = inside.indices == torch.tensor(clear_test.targets)
    assert right.float().mean() > 0.85
    assert outside.epistemic.mean() > 1.1 * inside.epistemic.mean()


def test_it_comes_back_bit_by_bit(drawn, clear_test, tmp_path):
    drawn.save(tmp_path / "model")
    again = load(tmp_path / "model")
    texts = clear_test.select(range(20))
    assert torch.equal(again.predict(texts).probs, drawn.predict(texts).probs)
    assert to_mapping(again.recipe) == to_mapping(drawn.recipe)
    mean = load(tmp_path / "model", samples=0).predict(texts)
    assert torch.equal(mean.probs, probs(drawn, texts, samples=0).probs)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_encoders(name, make, clear, bert_base):
    model = make(name, base=str(bert_base), epochs=1, **RANDOM[name])
    fit(model, clear.select(range(32)), progress=silent)
    texts = clear.select(range(8))
    a, b = model.predict(texts), model.predict(texts, batch_size=1)
    torch.testing.assert_close(a.probs, b.probs, rtol=0, atol=1e-5)
    assert a.epistemic.mean() > 0


@pytest.mark.parametrize("name", ["blob", "scalabl", "ensemble", "bayesian_lora", "c_lora"])
def test_an_interrupted_run_ends_as_a_whole_one(name, make, clear, tmp_path):
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    from test_resume import same_files, stop_after

    options = {"epochs": 3, "kl": 1.0 if KL(name) else 0.0, **RANDOM[name]}
    fit(make(name, **options), clear, out=tmp_path / "whole", progress=silent)
    with pytest.raises(KeyboardInterrupt):
        fit(make(name, **options), clear, out=tmp_path / "cut", progress=stop_after(260))
    fit(make(name, **options), clear, out=tmp_path / "cut", resume=True, progress=silent)
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_a_temperature_is_fitted_on_the_averaged_probabilities(make, clear):
    model = make("ensemble", temperature="auto", weights={"members": 2}, lr=1e-2, epochs=8)
    run = fit(model, clear, progress=silent)
    assert run.chosen["temperature"] != 1.0
    assert model.predict(["login"]).probs.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["blob", "ensemble"])
def test_numbers(name, make):
    """Epistemic deviation is that of the draws' means; the noise is the head's."""
    rows = Task.from_rows(number_rows(60), kind="regression")
    model = make(name, labels=rows, lr=1e-2, temperature="auto", **RANDOM[name])
    fit(model, rows, progress=silent)
    found, mean = model.predict(rows), probs(model, rows, samples=0)
    assert found.epistemic.mean() > 1e-4 and mean.epistemic.abs().max() == 0
    torch.testing.assert_close(found.std, torch.hypot(found.aleatoric, found.epistemic))
    draws = model.observe(rows).logits[..., 0].double()  # pyright: ignore
    scaled = draws * model.scaling.std + model.scaling.mean
    torch.testing.assert_close(found.mean, scaled.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.epistemic, scaled.std(0, correction=0), rtol=1e-4, atol=1e-6)


def test_a_merged_adapter_cannot_be_drawn(make, clear):
    model = make("blob", epochs=1)
    fit(model, clear, progress=silent)
    model.backbone.peft_model.merge_adapter()
    with pytest.raises(ModelError, match="merged into the base"):
        model.predict(["login"])
    assert probs(model, ["login"], samples=0).epistemic.max() == 0
    model.backbone.peft_model.unmerge_adapter()
    model.predict(["login"])


@pytest.mark.parametrize("name", ["tfb", "scalabl"])
def test_a_rank_beyond_a_layer_is_refused(name, make):
    with pytest.raises(ModelError, match="rank 20 exceeds the 16 inputs or outputs"):
        make(name, rank=20, targets="k_proj,v_proj")


def test_one_draw_is_a_draw_of_weights_but_no_integral(make, clear):
    model = make("blob", epochs=1, samples=1)
    fit(model, clear, progress=silent)
    assert model.predict(["login"]).epistemic.max() < 1e-6
    for name in ("polar_vbll", "laplace_lora"):
        with pytest.raises(ConfigError, match="samples=1 integrates nothing"):
            fit(make(name, samples=1), clear, progress=silent)
    with pytest.raises(ConfigError, match="couples those of 3 classes"):
        fit(make("polar_laplace", predictive="exact"), clear, progress=silent)


def test_all_members_predict_and_noise_is_not_theirs(make, clear):
    model = make("ensemble", weights={"members": 12}, epochs=1)
    start = model.observe(["login"])
    assert start.logits.shape[0] == 12 and start.logits.std(0).max() == 0  # pyright: ignore
    rows = Task.from_rows(number_rows(40), kind="regression")
    spread = []
    for factor in ("none", 2.0):
        model = make("ensemble", labels=rows, weights={"members": 2}, temperature=factor, lr=1e-2)
        fit(model, rows, progress=silent)
        spread.append(model.predict(rows).mean.std())  # pyright: ignore
    torch.testing.assert_close(*spread)
    with pytest.raises(ConfigError, match="share the noise"):
        make("ensemble", labels=rows, noise="heteroscedastic")


def test_a_second_fit_goes_on_from_the_first(make, clear):
    model = make("scalabl", epochs=1, weights={"rate": 1e-9})
    fit(model, clear, progress=silent)
    before = model.features(clear)
    fit(model, clear, progress=silent, lr=1e-9, head_lr=1e-9)
    torch.testing.assert_close(model.features(clear), before, rtol=1e-4, atol=1e-4)


# what sets each apart -----------------------------------------------------------------------------


def test_map_is_pulled_to_zero(make, clear):
    """Its penalty is a real one: with more of it weights and confidence fall."""
    norms, losses = [], []
    for std in (0.01, 10.0):
        model = make("map", weights={"prior_std": std}, lr=1e-2, kl=1.0)
        run = fit(model, clear, progress=silent)
        sites = model.backbone.weights.sites.values()  # pyright: ignore
        norms.append(sum(float(site.weight.detach().square().sum()) for site in sites))
        losses.append(run.history[-1]["kl"])
        assert model.predict(["login"]).epistemic.abs().max() == 0
    assert norms[0] < 0.5 * norms[1]
    assert losses[0] > losses[1]


def test_the_kl_of_map_is_the_log_prior(make):
    model = make("map", weights={"prior_std": 0.5}, kl=1.0)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape))
    model.head.set_feature_energy(4.0)
    weights = model.backbone.weights
    total = sum(s.weight.square().sum() for s in weights.sites.values())  # pyright: ignore
    torch.testing.assert_close(weights.kl(), total / (2 * 0.25))  # pyright: ignore
    variance = 2 * max(1.0, float(torch.tensor(3.0).log())) / 4.0
    torch.testing.assert_close(model.head.kl(), model.head.weight.square().sum() / (2 * variance))


def test_tfb_stays_within_its_tolerance(make, clear):
    """The noise returned changes the anchors' loss by no more than asked, and more would."""
    model = make("tfb", weights={"tolerance": 0.02, "upper": 5.0}, kl=0.0)
    run = fit(model, clear, progress=silent)
    sigma = run.chosen["weights"]["sigma"]
    assert 0 < sigma < 5.0 and run.chosen["weights"]["anchors"] == len(clear)
    buffer = model.backbone.weights.get_buffer("sigma")  # pyright: ignore

    def change(value: float) -> float:
        buffer.fill_(value)
        noisy, still = model.predict(clear), probs(model, clear, samples=0)
        labels = still.indices
        before = item_nll(still.probs, labels).mean()
        return float((item_nll(noisy.probs, labels).mean() - before).abs() / before)

    assert 0.018 < change(sigma) < 0.02 < change(1.1 * sigma)


def test_the_published_division_leaves_the_search_at_its_end(make, clear):
    sigma = {}
    for divided in (False, True):
        model = make("tfb", weights={"upper": 0.015, "per_anchor": divided}, kl=0.0)
        sigma[divided] = fit(model, clear, progress=silent).chosen["weights"]["sigma"]
    assert sigma[False] < 0.008 and sigma[True] == 0.015  # the published range


def test_the_published_steps_of_blob(make, clear):
    """The split optimiser moves the deviations, and by the cycle's weight."""
    stds = {}
    for weight in ("elbo", "cycle"):
        options = {"kl_weight": weight, "kl_step": "sgd", "rate": 0.02}
        model = make("blob", weights=options, kl=1.0)
        torch.manual_seed(0)
        start = torch.cat(
            [p.detach().square().flatten() for p in model.backbone.weights.parameters()]
        )
        fit(model, clear, progress=silent)
        end = torch.cat(
            [p.detach().square().flatten() for p in model.backbone.weights.parameters()]
        )
        stds[weight] = float((end / start).mean())
        assert stds[weight] != 1.0
    assert stds["elbo"] > 1.0


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mc_dropout", {"dropout": 0.0}, "dropout above 0"),
        ("mc_dropout", {"adapter.kind": "polar"}, "LoRA's factors"),
        ("tfb", {"adapter.kind": "polar"}, "LoRA's factors"),
        ("scalabl", {"adapter.kind": "polar"}, "LoRA's factors"),
        ("ensemble", {"weights": {"members": 1}}, "2 or more"),
        ("blob", {"head.kind": "gaussian"}, "head.kind=linear"),
        ("blob", {"refresh": "block"}, "finalize.refresh=none"),
        ("blob", {"weights": {"prior_std": 0.0}}, "weights.prior_std is 0"),
        ("blob", {"weights": {"prior_sdt": 1.0}}, "Did you mean 'prior_std'"),
        ("mle", {"weights": {"prior_std": 1.0}}, "unknown key weights.prior_std"),
        ("tfb", {"weights": {"statistic": "acc"}}, "expected 'nll' or 'changed'"),
        ("map", {"head.kind": "gaussian"}, "head.kind=linear"),
        ("map", {"adapter.kind": "contextual"}, "LoRA's factors or PoLAR's core"),
        ("blob", {"adapter.kind": "contextual"}, "LoRA's factors or PoLAR's core"),
        ("ivon", {"weights": {"ess": 1e7}, "train.kl": "auto"}, "give a number for train.kl"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(make, name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **overrides)


def test_tfb_is_about_classes(make):
    with pytest.raises(ConfigError, match="tfb predicts classes"):
        make("tfb", labels=Task.from_rows(number_rows(20), kind="regression"))


@pytest.mark.parametrize("name", ["blob", "tfb"])
def test_questions_with_fewer_choices(name, make, choice):
    model = make(name, labels=choice, epochs=2, **RANDOM[name])
    fit(model, choice, progress=silent)
    found = model.predict(choice)
    missing = model.mask(choice)
    assert missing is not None and found.probs[~missing].abs().max() == 0
    torch.testing.assert_close(found.probs.sum(1), torch.ones(len(choice)))


def test_tfb_holds_rows_out_where_it_is_to_use_them(make, clear):
    model = make("tfb", weights={"anchor": "held_out"}, epochs=1)
    assert fit(model, clear, progress=silent).chosen["weights"]["anchors"] == 12
    with pytest.raises(ConfigError, match=r"weights\.anchor=held_out"):
        fit(make("tfb", weights={"anchor": "held_out"}, hold_out=0.0), clear, progress=silent)


def test_options_are_kept_with_the_run(make, clear, tmp_path):
    model = make("blob", weights={"prior_std": 0.4}, epochs=1)
    fit(model, clear, out=tmp_path / "run", progress=silent)
    manifest = json.loads((tmp_path / "run/model/bayestune.json").read_text())
    assert manifest["recipe"]["weights"]["prior_std"] == 0.4
    assert manifest["recipe"]["weights"]["kl_weight"] == "elbo"
