from __future__ import annotations

import pytest
import torch
from tensor_sizes import sizes_of
from torch import Tensor

from bayestune.posterior import ordinal

D64 = torch.float64
CUTS = torch.tensor([-1.5, 0.2, 2.5], dtype=D64)
MU = torch.tensor([-4.0, 0.0, 0.3, 1.0, 9.0], dtype=D64)


def drawn(mu: Tensor, var: Tensor, draws: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return mu + var.sqrt() * torch.randn(draws, len(mu), generator=g, dtype=D64)


def written_out(f: Tensor, cuts: Tensor) -> Tensor:
    """P(y = k | f) as differences of sigmoids."""
    below = (cuts - f.unsqueeze(-1)).sigmoid()
    ones = torch.ones_like(f).unsqueeze(-1)
    return torch.cat([below, ones], -1) - torch.cat([0 * ones, below], -1)


def test_log_probs_are_differences_of_sigmoids() -> None:
    f = torch.linspace(-6, 6, 25, dtype=D64)
    found = ordinal.log_probs(f, CUTS)
    torch.testing.assert_close(found.exp(), written_out(f, CUTS))
    # Where those cancel: σ(b_2 − f) − σ(b_1 − f) = e^{−f}(e^{b_2} − e^{b_1}) far above both.
    far = ordinal.log_probs(torch.tensor(60.0, dtype=D64), CUTS)[1]
    torch.testing.assert_close(far, -60 + (CUTS[1].exp() - CUTS[0].exp()).log())


@pytest.mark.parametrize(
    ("std", "draws"), [(1e-4, 10**4), (0.3, 10**5), (1.0, 10**6), (6.0, 10**5), (40.0, 10**5)]
)
def test_probabilities_and_entropy_are_those_of_draws(std, draws) -> None:
    var = torch.full_like(MU, std**2)
    probs, entropy = ordinal.expected_probs(MU, var, CUTS)
    p = written_out(drawn(MU, var, draws), CUTS).clamp_min(0)
    H = torch.special.entr(p).sum(-1)
    assert ((p.mean(0) - probs).abs() <= 4 * p.std(0) / draws**0.5 + 1e-12).all()
    assert ((H.mean(0) - entropy).abs() <= 4 * H.std(0) / draws**0.5 + 1e-12).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(5, dtype=D64))


@pytest.mark.parametrize("std", [1e-4, 0.3, 6.0])
def test_the_expected_log_likelihood_is_that_of_draws(std) -> None:
    var, labels = torch.full_like(MU, std**2), torch.tensor([0, 1, 2, 3, 0])
    found = ordinal.expected_log_likelihood(MU, var, labels, CUTS)
    draws = ordinal.log_probs(drawn(MU, var, 100_000), CUTS)[:, torch.arange(5), labels]
    assert ((draws.mean(0) - found).abs() <= 4 * draws.std(0) / 100_000**0.5 + 1e-12).all()


#: On both sides of 1.125 and 5.06, where the rule of integration changes, and far beyond.
STDS = (1e-3, 0.5, 1.12, 1.13, 5.0, 5.1, 40.0, 1000.0)
THIN = torch.tensor([-30.0, -29.999, 0.2, 40.0], dtype=D64)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("cuts", [CUTS, THIN], ids=["cuts", "thin"])
def test_all_expectations_are_those_of_a_sum_over_a_fine_grid(std, cuts) -> None:
    t = torch.linspace(-12, 12, 24_000 * max(1, round(std / 40)) + 1, dtype=D64)
    weights = (-0.5 * t.square()).softmax(0)
    for mu in (0.3, -25.0):
        log_p = ordinal.log_probs(mu + std * t, cuts)
        p, labels = log_p.exp(), torch.arange(len(cuts) + 1)
        m, v = torch.full((len(labels),), mu, dtype=D64), torch.full((len(labels),), std**2)
        probs, entropy = ordinal.expected_probs(m, v.double(), cuts)
        torch.testing.assert_close(probs[0], weights @ p, rtol=0, atol=1e-8)
        torch.testing.assert_close(entropy[0], -(weights @ (p * log_p).sum(1)), rtol=0, atol=1e-8)
        seen = weights @ p > 1e-10
        torch.testing.assert_close(probs[0, seen], (weights @ p)[seen], rtol=1e-7, atol=0)
        found = ordinal.expected_log_likelihood(m, v.double(), labels, cuts)
        torch.testing.assert_close(found, weights @ log_p, rtol=1e-8, atol=1e-8)
        own = ordinal.expected_likelihood(m, v.double(), labels, cuts)
        torch.testing.assert_close(own, probs[0], rtol=1e-12, atol=1e-14)
        single = ordinal.expected_probs(m.float(), v, cuts.float())
        torch.testing.assert_close(single[0].double(), probs, rtol=2e-3, atol=2e-7)
        torch.testing.assert_close(single[1].double(), entropy, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("std", "distance"), [(0.5, 60.0), (2.0, 60.0), (6.0, 45.0), (40.0, 320.0)]
)
def test_what_is_improbable_is_relatively_right(std, distance) -> None:
    """On both sides, though one minus the rest would say nothing."""
    t = torch.linspace(-15, 15, 300_001, dtype=D64)
    mu, labels = torch.tensor([-distance, distance], dtype=D64), torch.tensor([1, 0])
    var, cut = torch.full_like(mu, std**2), torch.zeros(1, dtype=D64)
    expected = (-0.5 * t.square()).softmax(0) @ ordinal.log_probs(mu[0] + std * t, cut)[:, 1].exp()
    assert expected < 1e-11
    for found in (
        ordinal.expected_likelihood(mu, var, labels, cut),
        ordinal.expected_probs(mu, var, cut)[0].gather(1, labels[:, None]).flatten(),
    ):
        torch.testing.assert_close(found, expected.expand(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("std", [0.5, 2.0, 40.0, 1000.0])
def test_a_thin_class_is_relatively_right_in_single_precision(std) -> None:
    cuts = torch.tensor([0.5, 0.5 + 2**-14])
    mu, var = torch.zeros(1), torch.full((1,), std**2)
    thin = ordinal.expected_probs(mu, var, cuts)[0][0, 1].double()
    t = torch.linspace(-12, 12, 600_001, dtype=D64)
    slope = ordinal.log_probs(std * t, cuts[:1].double()).sum(-1).exp()  # σ'(b − f)
    expected = 2**-14 * ((-0.5 * t.square()).softmax(0) @ slope)
    torch.testing.assert_close(thin, expected, rtol=1e-4, atol=0)


def test_a_row_does_not_depend_on_the_others() -> None:
    var, labels = torch.tensor([0.3, 0.3, 2.0, 2.0, 900.0], dtype=D64), torch.arange(5) % 4
    together = ordinal.expected_probs(MU, var, CUTS)
    bounds = ordinal.expected_log_likelihood(MU, var, labels, CUTS)
    for i in range(5):
        one = slice(i, i + 1)
        alone = ordinal.expected_probs(MU[one], var[one], CUTS)
        torch.testing.assert_close(together[0][i], alone[0][0], rtol=1e-14, atol=0)
        torch.testing.assert_close(together[1][i], alone[1][0], rtol=1e-14, atol=0)
        bound = ordinal.expected_log_likelihood(MU[one], var[one], labels[one], CUTS)
        torch.testing.assert_close(bounds[i], bound[0], rtol=1e-14, atol=0)


def test_wide_scores_and_many_classes_cost_no_more_than_their_numbers() -> None:
    cuts, rows = torch.linspace(-80, 80, 49), 2000

    def sizes(function, *labels, widest: float, count: int = rows):
        var = torch.full((count,), 0.25)
        var[-1] = widest**2
        return sizes_of(lambda: function(torch.zeros(count), var, *labels, cuts))

    some = torch.zeros(rows, dtype=torch.long)
    for function, labels in (
        (ordinal.expected_probs, ()),
        (ordinal.expected_log_likelihood, (some,)),
        (ordinal.expected_likelihood, (some,)),
    ):
        assert sizes(function, *labels, widest=1e6) == sizes(function, *labels, widest=10)
    several = [sizes(ordinal.expected_probs, widest=10.0, count=n) for n in (1000, 4000)]
    assert several[0].largest == several[1].largest <= 2**20
    assert several[1].total < 4.1 * several[0].total


def test_two_classes_are_a_logistic_regression() -> None:
    from bayestune.posterior.quadrature import expected_sigmoid

    var = torch.full_like(MU, 1.7)
    zero = torch.zeros(1, dtype=D64)
    probs, entropy = ordinal.expected_probs(MU, var, zero)
    p, H = expected_sigmoid(MU, var)
    torch.testing.assert_close(probs[:, 1], p, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(entropy, H, rtol=1e-6, atol=1e-8)


def test_its_gradient_is_the_gradient_of_the_expectation() -> None:
    """Bonnet and Price: d/dμ E g = E g', d/dv E g = ½ E g''."""
    mu, var = MU.clone().requires_grad_(), torch.full_like(MU, 1.4).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0])
    slopes = torch.autograd.grad(
        ordinal.expected_log_likelihood(mu, var, labels, CUTS).sum(), (mu, var)
    )
    f = drawn(MU, torch.full_like(MU, 1.4), 400_000).requires_grad_()
    log_p = ordinal.log_probs(f, CUTS)[:, torch.arange(5), labels]
    (first,) = torch.autograd.grad(log_p.sum(), f)
    assert ((first.mean(0) - slopes[0]).abs() < 4 * first.std(0) / 400_000**0.5).all()
    second = -ordinal.curvature(f.detach(), labels.expand_as(f), CUTS)
    assert ((0.5 * second.mean(0) - slopes[1]).abs() < 2 * second.std(0) / 400_000**0.5).all()


def test_curvature_is_the_second_derivative() -> None:
    f, labels = torch.linspace(-4, 4, 8, dtype=D64).requires_grad_(), torch.arange(8) % 4
    log_p = ordinal.log_probs(f, CUTS)[torch.arange(8), labels].sum()
    (slope,) = torch.autograd.grad(log_p, f, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), f)
    torch.testing.assert_close(ordinal.curvature(f.detach(), labels, CUTS), -second)


def test_it_starts_at_the_shares_of_the_classes() -> None:
    counts = torch.tensor([10.0, 0.0, 25.0, 65.0], dtype=D64)
    cuts = ordinal.start_cuts(counts)
    found = ordinal.log_probs(torch.zeros((), dtype=D64), cuts).exp()
    torch.testing.assert_close(found, (counts + 0.5) / 102)
    assert bool((cuts.diff() > 0).all())


def test_single_precision_is_close() -> None:
    var = torch.tensor([1e-8, 0.1, 3.0, 50.0, 400.0], dtype=D64)
    exact = ordinal.expected_probs(MU, var, CUTS)
    single = ordinal.expected_probs(MU.float(), var.float(), CUTS.float())
    for a, b in zip(exact, single, strict=True):
        torch.testing.assert_close(a, b.double(), rtol=0, atol=3e-6)
