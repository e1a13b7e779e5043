"""BLoB's Gaussian: divergence, per-example noise, the published cycle and its own steps."""

from __future__ import annotations

import math

import pytest
import torch
from backbone_zoo import backbone
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from bayestune.optim import param_groups
from bayestune.weights import GaussianWeights, sites
from bayestune.weights.gaussian import cycle_weight, flipout, gaussian_kl
from bayestune.weights.scaled import ScaledWeights, normal_kl


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**options) -> GaussianWeights:
    where = sites(backbone("llama", adapter={"kind": "lora"}).peft_model, "A")
    return GaussianWeights(where, **{"prior_std": 0.2, "init_std": 0.05, "rate": 0.1, **options})


def test_the_divergence_is_that_of_torch():
    mean, std = random(3, 4), random(3, 4, seed=1).exp()
    expected = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 0.3)).sum()
    assert_close(gaussian_kl(mean, std, 0.3), expected)
    weights = make()
    expected = sum(
        kl_divergence(Normal(site.weight, weights.std(name)), Normal(0.0, 0.2)).sum()
        for name, site in weights.sites.items()
    )
    assert_close(weights.kl(), expected)


def test_both_divergences_of_scales_are_those_of_torch():
    mean, std = random(6).exp(), random(6, seed=1).exp()
    q, p = Normal(mean, std), Normal(torch.zeros_like(mean), 1.0)
    assert_close(normal_kl(mean, std), kl_divergence(q, p).sum())
    assert_close(normal_kl(mean, std, reverse=True), kl_divergence(p, q).sum())


def test_the_reversed_divergence_ignores_the_data():
    """Its minimum over σ is σ² = 1 + μ², at any μ."""
    mean = torch.tensor([0.1, 0.6, 2.0], dtype=torch.float64)
    log_std = torch.zeros_like(mean, requires_grad=True)
    for _ in range(2000):
        (slope,) = torch.autograd.grad(normal_kl(mean, log_std.exp(), reverse=True), log_std)
        with torch.no_grad():
            log_std -= 0.05 * slope
    assert_close((2 * log_std).exp().detach(), 1 + mean.square(), rtol=1e-6, atol=0)


def test_two_numbers_per_rank_and_layer():
    where = sites(backbone("llama", adapter={"kind": "lora"}).peft_model, "A")
    weights = ScaledWeights(where, init_std=0.05, rate=0.1, reverse=False)
    assert sum(p.numel() for p in weights.parameters()) == 2 * 2 * len(where)  # rank 2
    assert len(where) == 14  # q, k, v, o, gate, up, down of two layers
    assert set(weights.own_rates()) == {n for n, _ in weights.named_parameters() if "std" in n}


def test_flipout_has_the_law_of_own_draws():
    """Mean 0, the covariance of x ΔWᵀ; positions share a draw, examples are uncorrelated."""
    torch.manual_seed(0)
    x, std = random(2, 3, 4), random(2, 4, seed=1).square()
    draws = torch.stack([flipout(x, std) for _ in range(20_000)])  # (S, B, T, out)
    error = 4 * draws.std(0) / len(draws) ** 0.5
    assert (draws.mean(0).abs() < error).all()
    # Cov(y_o(t), y_o(t')) = Σ_i Ω_oi² x_ti x_t'i, between outputs and examples 0
    found = torch.einsum("sbto,scuo->btcuo", draws, draws) / len(draws)
    shared = torch.einsum("oi,bti,bui->btuo", std.square(), x, x)
    expected = torch.zeros_like(found)
    for b in range(2):
        expected[b, :, b] = shared[b]
    spread = 4 * found.abs().amax() * math.sqrt(3 / len(draws))
    assert (found - expected).abs().max() < spread
    across = torch.einsum("sbt,sbt->bt", draws[..., 0], draws[..., 1]) / len(draws)
    assert across.abs().max() < spread


def test_the_sign_of_the_root_does_not_matter_and_likelihood_moves_it():
    weights = make()
    name = next(iter(weights.sites))
    std, kl = weights.std(name), weights.kl()
    with torch.no_grad():
        for root in weights.parameters():
            root.neg_()
    assert torch.equal(weights.std(name), std) and torch.equal(weights.kl(), kl)
    x = torch.randn(5, 7, std.shape[1])
    weights.train_forward(name, x, torch.zeros(5, 7, len(std))).square().sum().backward()
    grad = weights.roots[name.replace(".", "-")].grad
    assert grad is not None and grad.abs().min() > 0


def test_deviations_have_their_own_rate():
    model = backbone("llama", adapter={"kind": "lora"})
    model.weights = GaussianWeights(
        sites(model.peft_model, "A"), prior_std=0.2, init_std=0.05, rate=0.07
    )
    model.peft_model.score.modules_to_save["default"].set_feature_energy(1.0)
    groups = {group["name"]: group for group in param_groups(model, lr=1e-3)}
    assert groups["deviations"]["lr"] == 0.07 and groups["euclidean"]["lr"] == 1e-3
    own = {id(p) for p in model.weights.parameters()}
    assert {id(p) for p in groups["deviations"]["params"]} == own


@pytest.mark.parametrize(("rows", "batch"), [(640, 4), (640, 16), (9, 400)])
def test_a_cycle_of_weights(rows, batch):
    length = max(1, int(100 * rows ** (math.pi / 8) / batch))
    cycle = [cycle_weight(step, rows, batch) for step in range(length)]
    assert sum(cycle) == pytest.approx(1 - 1 / (2.0 ** (length + 1) - 1))
    assert max(cycle) == cycle[-1]
    assert cycle_weight(length, rows, batch) == cycle[0]


def test_lengths_of_the_published_cycles():
    """640 to 9,427 rows in batches of 4; at each cycle's first step the weight is the least."""
    for rows, length in ((640, 316), (1119, 393), (2251, 518), (2558, 544), (4957, 706)):
        weights = [cycle_weight(step, rows, 4) for step in range(length + 1)]
        assert weights[length] == weights[0] < 1e-60 and weights[length - 1] >= 0.5


def test_the_own_step_is_gradient_descent_on_both():
    weights = make(steps_itself=True, rate=0.01)
    name, site = next(iter(weights.sites.items()))
    root = weights.roots[name.replace(".", "-")]
    for parameter in weights.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    before_root, before_mean = root.detach().clone(), site.weight.detach().clone()
    weights.own_step(weight=2e-3, rate=0.5)
    std = before_root.square()
    of_root = 2 * before_root * (std / 0.04 - 1 / std)  # dKL/dG
    assert_close(root.detach(), before_root - 0.005 * (0.3 + 2e-3 * of_root))
    assert_close(site.weight.detach(), before_mean - 0.005 * 2e-3 * before_mean / 0.04)
    assert root.grad is None
