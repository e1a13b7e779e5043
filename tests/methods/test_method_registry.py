"""Methods by name, and what a method says of itself."""

from __future__ import annotations

import pytest
import torch

from bayestune import methods
from bayestune.config import FinalizeConfig, Recipe
from bayestune.errors import ConfigError
from bayestune.finalize import Features
from bayestune.head import GaussianHead, LinearHead
from bayestune.methods import parts


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_every_method_builds_a_valid_recipe_and_names_its_paper(name: str) -> None:
    method = methods.get(name)
    assert method.name == name and method.summary
    assert method.source.startswith("arXiv ")
    recipe = methods.recipe(name)
    assert recipe.method == name
    for section, values in method.defaults.items():
        for key, value in values.items():
            assert getattr(getattr(recipe, section), key) == value


def test_the_two_methods_of_the_comparison() -> None:
    polar, mle = methods.recipe("polar_vbll"), methods.recipe("mle")
    assert (polar.adapter.kind, polar.head.kind) == ("polar", "gaussian")
    assert (mle.adapter.kind, mle.head.kind) == ("lora", "linear")
    assert (mle.finalize.refresh, mle.finalize.temperature) == ("none", "none")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"There is no method 'polarvbll'. Did you mean 'polar_vb"
    ):
        methods.get("polarvbll")
    with pytest.raises(ConfigError, match="Valid: 'polar_vbll', 'lora_vbll', 'mle'"):
        methods.recipe("zzz")


@pytest.mark.parametrize(
    ("method", "overrides", "adapter", "head"),
    [
        ("polar_vbll", {}, "PolarConfig", GaussianHead),
        ("polar_vbll", {"adapter.kind": "lora"}, "LoraConfig", GaussianHead),
        ("mle", {}, "LoraConfig", LinearHead),
        ("mle", {"adapter.kind": "polar"}, "PolarConfig", LinearHead),
        ("mle", {"head.kind": "gaussian"}, "LoraConfig", GaussianHead),
    ],
)
def test_adapter_and_head_combine_freely(make, method, overrides, adapter, head) -> None:
    model = make(method, **overrides)
    config = model.backbone.peft_model.peft_config["default"]
    assert type(config).__name__ == adapter
    assert isinstance(model.head, head)
    assert sorted(config.layers_to_transform) == [2, 3] and config.r == 4
    assert model.backbone.first_layer == 2 and model.backbone.splits


# the point head's terms and finaliser -----------------------------------------------------------

PHI = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def test_the_loss_of_a_point_head_is_cross_entropy_without_a_divergence() -> None:
    head = LinearHead(in_features=5, num_classes=3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))
    terms = parts.loss(head, Features(PHI, LABELS))
    expected = torch.nn.functional.cross_entropy(PHI @ head.weight.T, LABELS)
    torch.testing.assert_close(terms.nll, expected)
    assert terms.kl.item() == 0


def test_finalizing_without_anything_to_do_changes_nothing() -> None:
    head = GaussianHead(in_features=5, num_classes=3, feature_energy=5.0)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    same, report = parts.finalize(
        head,
        Features(PHI, LABELS),
        None,
        Recipe(finalize=FinalizeConfig(refresh="none", scale=1.0, temperature="none")),
    )
    assert same is head and report["temperature"] == 1.0 and report["covariance"] == "trained"
    assert all(torch.equal(before[k], v) for k, v in head.state_dict().items())


@pytest.mark.parametrize("config", [{"temperature": "auto"}, {"refresh": "block"}])
def test_choosing_needs_held_out_rows(config) -> None:
    head = GaussianHead(in_features=5, num_classes=3, feature_energy=5.0)
    options = {"refresh": "none", "temperature": "none", **config}
    with pytest.raises(ConfigError, match="chosen on held-out rows, and there are none"):
        parts.finalize(
            head, Features(PHI, LABELS), None, Recipe(finalize=FinalizeConfig(**options))
        )


def test_a_given_temperature_is_folded_in() -> None:
    head = LinearHead(in_features=5, num_classes=3)
    with torch.no_grad():
        head.weight.fill_(1.0)
    _, report = parts.finalize(
        head,
        Features(PHI, LABELS),
        None,
        Recipe(finalize=FinalizeConfig(refresh="none", temperature=2.0)),
    )
    assert report["temperature"] == 2.0
    torch.testing.assert_close(head.weight, torch.full((3, 5), 0.5))


def test_a_point_head_stays_one_unless_a_refresh_is_asked_for_by_name() -> None:
    for refresh, kind in (("auto", LinearHead), ("none", LinearHead), ("block", GaussianHead)):
        head = LinearHead(in_features=5, num_classes=3)
        done, _ = parts.finalize(
            head,
            Features(PHI, LABELS),
            None,
            Recipe(finalize=FinalizeConfig(refresh=refresh, precision=1.0, temperature="none")),
        )
        assert isinstance(done, kind)
