"""The Gaussian that IVON learns, as the model holds it: units, divergence, what follows a step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayestune.head import LinearHead
from bayestune.optim import Ivon, param_groups
from bayestune.weights import IvonWeights, Site, head_site, spread

ENERGY = 50.0
OPTIONS: dict[str, Any] = {
    "prior_std": 0.2,
    "init_std": 0.05,
    "prior_scale": 1.0,
    "init_scale": 0.5,
    "beta2": 0.9,
    "clip": 1e-3,
    "ess": None,
}


def ivon(**options: Any) -> IvonWeights:
    """IVON over a layer's map of 20 × 30 weights and a head of 4 classes."""
    layer = nn.Linear(30, 20, bias=False)
    head = LinearHead(in_features=20, num_classes=4, feature_energy=ENERGY)
    sites = {"layer.A": Site(layer, layer.weight, layer)} | head_site(head)
    return IvonWeights(sites, **{**OPTIONS, **options})


def optimizers(weights: IvonWeights, kl_weight: float = 0.01, lr: float = 1e-2) -> list[Ivon]:
    """The optimisers of the layer and of the head, as a training makes them."""
    modules = nn.ModuleList(site.module for site in weights.sites.values())
    groups = param_groups(modules, lr, head_lr=lr)
    return [weights.optimizer([group], kl_weight) for group in groups]


def step(weights: IvonWeights, both: list[Ivon]) -> None:
    """One step on a loss of all weights."""
    first, second = both
    with first.sampled(), second.sampled():
        loss = sum(torch.cos(3 * site.weight).sum() for site in weights.sites.values())
        loss.backward()  # pyright: ignore
    first.step()
    second.step()


@pytest.mark.parametrize("kl_weight", [1 / 100, 1 / 40000])
def test_prior_and_start_are_those_asked_for_at_any_number_of_rows(kl_weight: float) -> None:
    weights = ivon()
    layer, head = (o.param_groups[0] for o in optimizers(weights, kl_weight))
    logit = {"prior": 2 * math.log(4) / ENERGY, "start": 0.25 / ENERGY}  # variances of a weight
    for group, prior, start in (
        (layer, 0.2**2, 0.05**2),
        (head, logit["prior"], logit["start"]),
    ):
        assert group["ess"] == pytest.approx(1 / kl_weight)
        assert 1 / (group["ess"] * group["weight_decay"]) == pytest.approx(prior)
        precision = group["ess"] * (group["hess_init"] + group["weight_decay"])
        assert 1 / precision == pytest.approx(start)
    assert weights.std("layer.A")[0, 0] == pytest.approx(0.05)
    assert weights.curvature() == pytest.approx({"adapter": 1.0, "head": 1.0}, rel=1e-5)


def test_a_given_effective_sample_size_takes_the_place_of_the_rows() -> None:
    layer, head = (o.param_groups[0] for o in optimizers(ivon(ess=1e6)))
    assert layer["ess"] == head["ess"] == 1e6
    assert 1e6 * layer["weight_decay"] == pytest.approx(0.2**-2)


def test_no_weight_moves_by_more_than_the_rate_and_steep_ones_by_all_of_it() -> None:
    torch.manual_seed(0)
    weights = ivon()
    both = optimizers(weights, lr=1e-2)
    before = [site.weight.detach().clone() for site in weights.sites.values()]
    step(weights, both)
    factor = (20 / ENERGY) ** 0.5  # of the head's rate, in units of its features
    for site, old, rate in zip(weights.sites.values(), before, (1e-2, 1e-2 * factor), strict=True):
        moved = (site.weight.detach() - old).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=1e-3)
        assert (moved > 0.99 * rate).float().mean() > 0.5


def test_the_deviations_follow_the_optimiser() -> None:
    torch.manual_seed(0)
    weights = ivon()
    both = optimizers(weights)
    for _ in range(5):
        step(weights, both)
    for (name, site), optimizer in zip(weights.sites.items(), both, strict=True):
        assert torch.equal(weights.std(name), optimizer.deviations()[site.weight])
    (h,) = (entry["hess"] for entry in both[0].state.values())
    h0 = both[0].param_groups[0]["hess_init"]
    assert weights.curvature()["adapter"] == pytest.approx(float((h / h0).mean()), rel=1e-3)
    # A training that is continued has its deviations already, another loop's optimiser or not.
    kept = weights.std("layer.A").clone()
    optimizers(weights)
    assert torch.equal(weights.std("layer.A"), kept)


def divergence(weights: IvonWeights, means: list[Tensor]) -> float:
    """KL(q ‖ prior) by torch.distributions in float64."""
    total = 0.0
    for mean, name in zip(means, weights.sites, strict=True):
        q = torch.distributions.Normal(mean.double(), weights.std(name).double())
        p = torch.distributions.Normal(0.0, torch.tensor(weights.scales(name)[0]).double())
        total += float(torch.distributions.kl_divergence(q, p).sum())
    return total


def test_the_divergence_is_that_of_two_gaussians_and_is_estimated_without_bias() -> None:
    torch.manual_seed(0)
    weights = ivon()
    both = optimizers(weights)
    for _ in range(3):
        step(weights, both)
    expected = divergence(weights, [s.weight.detach() for s in weights.sites.values()])
    assert float(weights.kl()) == pytest.approx(expected, rel=1e-5)
    weights.train(True)
    found = []
    for _ in range(400):
        with both[0].sampled(), both[1].sampled():
            found.append(float(weights.kl()))
    each = torch.tensor(found).double()
    assert abs(float(each.mean()) - expected) < 4 * float(each.std()) / 400**0.5
    assert float(each.std()) < 0.05 * expected


def test_draws_have_the_deviations_of_the_posterior() -> None:
    torch.manual_seed(0)
    weights = ivon()
    both = optimizers(weights)
    for _ in range(5):
        step(weights, both)
    S = 1500
    z = weights.deviations("head", range(S), 0) / weights.std("head")
    assert ((z.square().mean(0) - 1).abs() < 4 * (2 / S) ** 0.5).all()
    assert (z.mean(0).abs() < 4 / S**0.5).all()
    assert torch.equal(weights.deviations("head", [7], 0)[0], z[7] * weights.std("head"))


def test_a_temperature_divides_the_deviations_of_the_head_alone() -> None:
    weights = ivon()
    optimizers(weights)
    before = spread(weights.std, weights.sites)
    weights.fold_temperature(2.0)
    after = spread(weights.std, weights.sites)
    assert after == pytest.approx({"adapter": before["adapter"], "head": before["head"] / 2})
