"""C-LoRA, trained on a tiny model: where it starts, what is weighed, what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import bayestune as bt
from bayestune.errors import BayestuneError, ConfigError
from bayestune.progress import silent
from bayestune.training import fit

OPTIONS = {"lr": 1e-2, "epochs": 3}


def test_it_starts_as_lora(make, clear, make_alike) -> None:
    contextual, plain = make("c_lora"), make("mle", kl=0.0)
    make_alike(plain, contextual)
    found = contextual.features(clear)
    torch.testing.assert_close(found, plain.features(clear))
    assert not torch.allclose(found, make("mle", kl=0.0).features(clear), atol=1e-3)


@pytest.fixture
def make_alike():
    """Give both models the same factors, B not zero."""

    @torch.no_grad()
    def copy(plain, contextual) -> None:
        own = dict(contextual.backbone.named_parameters())
        for name, parameter in plain.backbone.named_parameters():
            if "lora_" in name:
                parameter.copy_(own[name] + 0.3 * torch.randn_like(parameter))
                own[name].copy_(parameter)

    return copy


def test_the_divergence_is_weighed_and_spreads_the_deviations(make, clear) -> None:
    ends = {}
    for kl in ("text", "published"):
        model = make("c_lora", **OPTIONS, weights={"kl": kl, "rate": 1e-2})
        run = fit(model, clear, progress=silent)
        u = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        weights = model.backbone.weights
        stds = [weights.std(name, u).detach().mean() for name in weights.sites]
        ends[kl] = run.history[0]["kl"], float(torch.stack(stds).mean())
    assert ends["text"][0] > 100 and ends["published"][0] < 1e-3
    # Towards the prior's 0.2 from 0.05; without a divergence noise is only ever in the way.
    assert ends["text"][1] > 0.1 > 0.06 > ends["published"][1]


def test_its_adapter_holds_the_whole_mean_and_the_posterior_the_rest(make, clear, tmp_path) -> None:
    model = make("c_lora", **OPTIONS)
    fit(model, clear, out=tmp_path / "run", progress=silent)
    folder = tmp_path / "run" / "model"
    adapter = load_file(folder / "adapter_model.safetensors")
    posterior = load_file(folder / "posterior.safetensors")
    assert sum("lora_A.context." in name for name in adapter) == 4 * 4
    assert sum(name.startswith("weights.spreads.") for name in posterior) == 4 * 2
    assert not [name for name in adapter if "spread" in name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "import bayestune\nfrom peft import" in card


def test_its_mean_alone_is_a_point_method(make, clear, clear_test, tmp_path) -> None:
    model = make("mle", adapter={"kind": "contextual"}, lr=1e-2, epochs=6, kl=0.0)
    fit(model, clear, out=tmp_path / "run", progress=silent)
    prediction = model.predict(clear_test)
    assert (prediction.indices == torch.tensor(clear_test.targets)).float().mean() > 0.9
    assert torch.equal(bt.load(tmp_path / "run").predict(clear_test).probs, prediction.probs)


def test_half_precision_is_the_backbones_alone(make, clear) -> None:
    model = make("c_lora", dtype="bfloat16", **OPTIONS)
    fit(model, clear.select(range(32)), progress=silent, epochs=1)
    dtypes = {p.dtype for p in model.backbone.parameters() if p.requires_grad}
    assert dtypes == {torch.float32} and model.backbone.dtype == torch.bfloat16
    assert bool(torch.isfinite(model.predict(clear).probs).all())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("c_lora", {"adapter": {"kind": "lora"}}, "adapter.kind is lora, expected contextual"),
        ("c_lora", {"weights": {"prior_std": 0.0}}, "weights.prior_std is 0.0; expected above 0"),
        ("c_lora", {"weights": {"init_std": 1.0}}, "weights.init_std is 1.0; expected between"),
        ("c_lora", {"weights": {"prior": "one"}}, "weights.prior"),
        ("c_lora", {"head": {"kind": "gaussian"}}, "head.kind=linear"),
        ("bayesian_lora", {"adapter": {"kind": "contextual"}}, "adapter.kind=contextual has none"),
        ("tfb", {"adapter": {"kind": "contextual"}}, "adapter.kind=contextual has none"),
        ("blob", {"adapter": {"kind": "contextual"}}, "LoRA's factors or PoLAR's core"),
    ],
)
def test_what_does_not_go_together_is_refused(make, method, options, message) -> None:
    kind = ConfigError if method != "blob" else BayestuneError
    with pytest.raises(kind, match=message):
        make(method, **options)
