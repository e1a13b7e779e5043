from __future__ import annotations

import pytest
import torch

from bayestune.posterior import bounds


def problem(B: int, K: int, variance: float, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(B, K, generator=g, dtype=torch.float64)
    var = variance * 2 * torch.rand(B, K, generator=g, dtype=torch.float64)
    return mu, var, torch.randint(K, (B,), generator=g)


def expected_log_likelihood(mu, var, labels, draws: int, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, *mu.shape, generator=g, dtype=mu.dtype)
    each = (mu + var.sqrt() * noise).log_softmax(-1)[:, torch.arange(len(labels)), labels]
    return each.mean(0), each.std(0) / draws**0.5


@pytest.mark.parametrize("variance", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("K", [2, 7])
def test_jensen_is_below_the_expectation(K, variance):
    mu, var, labels = problem(12, K, variance)
    expectation, error = expected_log_likelihood(mu, var, labels, 40_000)
    assert (bounds.jensen(mu, var, labels) <= expectation + 4 * error).all()


def test_jensen_holds_for_correlated_logits():
    g = torch.Generator().manual_seed(0)
    L = torch.randn(4, 4, generator=g, dtype=torch.float64)
    mu = torch.randn(4, generator=g, dtype=torch.float64)
    z = mu + torch.randn(200_000, 4, generator=g, dtype=torch.float64) @ L.T
    for y in range(4):
        each = z.log_softmax(-1)[:, y]
        bound = bounds.jensen(mu[None], (L @ L.T).diagonal()[None], torch.tensor([y]))
        assert bound <= each.mean() + 4 * each.std() / 200_000**0.5


def test_jensen_is_tight_without_variance():
    mu, var, labels = problem(6, 5, 1.0)
    exact = mu.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(bounds.jensen(mu, 0 * var, labels), exact)
    gap = exact - bounds.jensen(mu, 1e-6 * var, labels)
    assert (gap > 0).all()
    assert (gap < 2e-6).all()


def test_jensen_slope_in_the_variance_is_half_the_inflated_softmax():
    mu, var, labels = problem(6, 5, 1.0)
    var.requires_grad_()
    (slope,) = torch.autograd.grad(bounds.jensen(mu, var, labels).sum(), var)
    torch.testing.assert_close(slope, -0.5 * (mu + 0.5 * var.detach()).softmax(-1))


def test_monte_carlo_agrees_with_plain_sampling_and_shares_noise():
    mu, var, labels = problem(5, 4, 3.0)
    expectation, error = expected_log_likelihood(mu, var, labels, 40_000)
    g = torch.Generator().manual_seed(9)
    noise = torch.randn(40_000, 1, 4, generator=g, dtype=torch.float64)
    estimate = bounds.monte_carlo(mu, var, labels, noise)
    assert ((estimate - expectation).abs() < 4 * 2**0.5 * error).all()
    repeated = bounds.monte_carlo(mu, var, labels, noise[:7].expand(7, 5, 4))
    torch.testing.assert_close(bounds.monte_carlo(mu, var, labels, noise[:7]), repeated)


@pytest.mark.parametrize("variance", [0.01, 1.0, 10.0, 200.0])
@pytest.mark.parametrize("K", [2, 7, 60])
def test_bounds_stand_in_order_below_the_expectation(K, variance):
    mu, var, labels = problem(40, K, variance)
    exact = bounds.exact(mu, var, labels)
    tilted, jensen = bounds.tilted(mu, var, labels), bounds.jensen(mu, var, labels)
    rounding = 1e-6 * (1 + exact.abs())
    assert (jensen <= tilted).all()
    assert (tilted <= exact + rounding).all()
    assert (bounds.bohning(mu, var, labels) <= exact + rounding).all()
    if variance >= 1:
        assert (tilted > jensen + 1e-3).float().mean() > 0.9


@pytest.mark.parametrize("variance", [0.1, 3.0, 40.0])
def test_exact_is_the_expectation(variance):
    mu, var, labels = problem(12, 5, variance)
    expectation, error = expected_log_likelihood(mu, var, labels, 200_000)
    assert ((bounds.exact(mu, var, labels) - expectation).abs() < 4 * error).all()
    # Two classes: E softplus of the difference, by a Riemann sum of ten deviations.
    mu, var, labels = problem(12, 2, variance)
    t = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    density = (-0.5 * t.square()).exp() / (2 * torch.pi) ** 0.5 * (t[1] - t[0])
    ahead = (mu.gather(1, labels[:, None]) - mu.gather(1, 1 - labels[:, None])).squeeze(1)
    d = ahead[:, None] + var.sum(1, keepdim=True).sqrt() * t
    by_hand = torch.nn.functional.logsigmoid(d) @ density
    torch.testing.assert_close(bounds.exact(mu, var, labels), by_hand, rtol=1e-6, atol=2e-7)


def test_the_slopes_of_the_expectation_are_expected_probabilities():
    mu, var, labels = problem(6, 4, 2.0)
    mu.requires_grad_()
    var.requires_grad_()
    slopes = torch.autograd.grad(bounds.exact(mu, var, labels).sum(), (mu, var))
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, 6, 4, generator=g, dtype=torch.float64)
    p = (mu + var.sqrt() * noise).detach().softmax(-1)
    for slope, draws in zip(
        slopes,
        (torch.nn.functional.one_hot(labels, 4) - p, -0.5 * p * (1 - p)),
        strict=True,
    ):
        assert ((slope - draws.mean(0)).abs() < 5 * draws.std(0) / 200_000**0.5).all()


@pytest.mark.parametrize("variance", [1.0, 30.0, 200.0])
@pytest.mark.parametrize("K", [2, 5, 150])
def test_no_tilt_is_better_than_the_one_found(K, variance):
    mu, var, labels = problem(10, K, variance)
    best = bounds.tilted(mu, var, labels)

    def at(a):
        partition = torch.logsumexp(mu + (0.5 - a) * var, -1) + 0.5 * (a.square() * var).sum(-1)
        return mu.gather(1, labels[:, None]).squeeze(1) - partition

    a = torch.full_like(mu, 1 / K).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [a], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = -at(a).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        assert (at(a) <= best + 1e-9 * (1 + best.abs())).all()


def test_the_plain_fixed_point_often_falls_below_jensen_and_the_bound_does_not():
    mu, var, labels = problem(200, 6, 50.0)
    a = torch.zeros_like(mu)
    for _ in range(20):
        a = (mu + (0.5 - a) * var).softmax(-1)
    partition = torch.logsumexp(mu + (0.5 - a) * var, -1) + 0.5 * (a.square() * var).sum(-1)
    plain = mu.gather(1, labels[:, None]).squeeze(1) - partition
    jensen = bounds.jensen(mu, var, labels)
    assert (plain < jensen).float().mean() > 0.3
    assert (bounds.tilted(mu, var, labels) >= jensen).all()


def covariance(B: int, K: int, seed: int = 4):
    g = torch.Generator().manual_seed(seed)
    L = torch.randn(B, K, K, generator=g, dtype=torch.float64)
    return L @ L.mT


def test_the_correlated_tilt_with_a_diagonal_is_the_independent_one():
    mu, var, labels = problem(20, 6, 5.0)
    torch.testing.assert_close(
        bounds.tilted_correlated(mu, torch.diag_embed(var), labels),
        bounds.tilted(mu, var, labels),
    )


def test_the_correlated_tilt_is_between_jensen_and_the_expectation():
    mu, _, labels = problem(5, 4, 1.0)
    V = covariance(5, 4)
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(200_000, 5, 4, generator=g, dtype=torch.float64)
    z = mu + torch.einsum("bij,sbj->sbi", torch.linalg.cholesky(V), noise)
    each = z.log_softmax(-1)[:, torch.arange(5), labels]
    bound = bounds.tilted_correlated(mu, V, labels)
    assert (bound <= each.mean(0) + 4 * each.std(0) / 200_000**0.5).all()
    jensen = bounds.jensen(mu, V.diagonal(dim1=1, dim2=2), labels)
    assert (bound > jensen).all()


def test_a_shift_common_to_all_classes_costs_nothing():
    mu, _, labels = problem(5, 4, 1.0)
    V = torch.full((5, 4, 4), 9.0, dtype=torch.float64)
    point = mu.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(bounds.tilted_correlated(mu, V, labels), point)


CLOSED = {name: getattr(bounds, name) for name in ("jensen", "bohning", "tilted", "exact")} | {
    "monte_carlo": lambda mu, var, labels, mask=None: bounds.monte_carlo(
        mu, var, labels, noise(mu.shape[-1]).to(mu), mask
    ),
    "tilted_correlated": lambda mu, var, labels, mask=None: bounds.tilted_correlated(
        mu, torch.diag_embed(var) + 0.1, labels, mask
    ),
}


def noise(K: int):
    return torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(2))[..., :K].double()


@pytest.fixture(params=list(CLOSED))
def bound(request):
    return CLOSED[request.param]


def test_a_mask_is_the_same_as_leaving_the_classes_out(bound):
    mu, var, labels = problem(8, 6, 2.0)
    labels = labels % 4
    mask = torch.tensor([True] * 4 + [False] * 2).expand(8, 6)
    few = bound(mu[:, :4], var[:, :4], labels)
    torch.testing.assert_close(bound(mu, var, labels, mask), few)


def test_a_row_does_not_depend_on_its_batch(bound):
    mu, var, labels = problem(9, 6, 20.0)
    together = bound(mu, var, labels)
    apart = [bound(mu[i : i + 1], var[i : i + 1], labels[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-12, atol=1e-12)


def test_single_precision_is_enough(bound):
    mu, var, labels = problem(30, 6, 5.0)
    torch.testing.assert_close(
        bound(mu.float(), var.float(), labels).double(),
        bound(mu, var, labels),
        rtol=2e-5,
        atol=2e-5,
    )


def test_gradients_of_every_bound(bound):
    mu, var, labels = problem(3, 4, 3.0)
    labels = labels % 3
    mu.requires_grad_()
    var.requires_grad_()
    mask = torch.tensor([True, True, True, False]).expand(3, 4)
    for m in (None, mask):
        assert torch.autograd.gradcheck(
            lambda a, v, m=m: bound(a, v, labels, m), (mu, var), atol=1e-6
        )


def test_monte_carlo_has_a_finite_gradient_at_zero_variance():
    mu, var, labels = problem(3, 4, 0.0)
    var = torch.zeros_like(var).requires_grad_()
    noise = torch.ones(2, 1, 4, dtype=torch.float64)
    bounds.monte_carlo(mu, var, labels, noise).sum().backward()
    assert torch.isfinite(var.grad).all()
