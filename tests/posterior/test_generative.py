from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, distributions

from bayestune.posterior import classes, diagonal, generative

K, P = 3, 2
D64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(seed: int = 0, spread: float = 0.6) -> tuple[Tensor, ...]:
    """Means, deviations, noise and log class prior of three classes."""
    g = rng(seed)
    mean = torch.randn(K, P, generator=g, dtype=D64)
    scale = spread * (0.5 + torch.rand(K, P, generator=g, dtype=D64))
    noise = 0.3 + torch.rand(P, generator=g, dtype=D64)
    return mean, scale, noise, torch.tensor([0.5, 0.2, 0.3], dtype=D64).log()


def inputs(n: int = 6, seed: int = 5) -> Tensor:
    return 1.5 * torch.randn(n, P, generator=rng(seed), dtype=D64)


def drawn_means(mean: Tensor, scale: Tensor, draws: int, seed: int = 9) -> Tensor:
    return mean + scale * torch.randn(draws, *mean.shape, generator=rng(seed), dtype=D64)


def log_likelihood(x: Tensor, means: Tensor, noise: Tensor, log_prior: Tensor) -> Tensor:
    """log π_k + log N(x; μ_sk, Σ) ``(S, B, K)``, written out."""
    normal = distributions.Normal(means[:, None], noise.sqrt())
    return log_prior + normal.log_prob(x[None, :, None]).sum(-1)


# closed form -------------------------------------------------------------------------------------


def test_log_joint_is_scipys_marginal() -> None:
    mean, scale, noise, log_prior = model()
    x = inputs()
    found = generative.log_joint(x, mean, scale, noise, log_prior)
    for k in range(K):
        covariance = torch.diag(scale[k] ** 2 + noise).numpy()
        expected = multivariate_normal(mean[k].numpy(), covariance).logpdf(x.numpy())
        torch.testing.assert_close(found[:, k], torch.from_numpy(expected) + log_prior[k])


def test_the_density_integrates_to_one() -> None:
    grid = torch.linspace(-12, 12, 401, dtype=D64)
    x = torch.cartesian_prod(grid, grid)
    density = generative.log_joint(x, *model()).logsumexp(-1).exp()
    torch.testing.assert_close(float(density.sum() * (24 / 400) ** 2), 1.0)


def test_the_predictive_is_the_ratio_of_expectations() -> None:
    """p(y | x) by Monte Carlo over the prior of a new point: Σ_s p(x, y | μ_s) / Σ_s p(x | μ_s)."""
    mean, scale, noise, log_prior = model()
    x, draws = inputs(), 200_000
    joint = log_likelihood(x, drawn_means(mean, scale, draws), noise, log_prior).exp()  # (S, B, K)
    found = generative.log_joint(x, mean, scale, noise, log_prior).exp()
    error = joint.std(0) / draws**0.5
    assert ((joint.mean(0) - found).abs() < 4 * error).all()


# the training bound ------------------------------------------------------------------------------


def test_the_bound_is_below_the_expectation_and_tight_for_known_means() -> None:
    mean, scale, noise, log_prior = model()
    x, labels = inputs(), torch.tensor([0, 1, 2, 0, 1, 2])
    draws = log_likelihood(x, drawn_means(mean, scale, 100_000), noise, log_prior)
    log_p = draws.log_softmax(-1)[:, torch.arange(6), labels]  # (S, B)
    bound = generative.bound(x, labels, mean, scale, noise, log_prior)
    assert (bound < log_p.mean(0)).all()
    # Its first terms are exact: with the marginal taken off, no gap is left.
    exact = draws[:, torch.arange(6), labels]
    log_marginal = generative.log_joint(x, mean, scale, noise, log_prior).logsumexp(-1)
    assert ((exact.mean(0) - bound - log_marginal).abs() < 4 * exact.std(0) / 100_000**0.5).all()
    sure = generative.bound(x, labels, mean, 1e-9 * scale, noise, log_prior)
    known = log_likelihood(x, mean[None], noise, log_prior)[0].log_softmax(-1)
    torch.testing.assert_close(sure, known[torch.arange(6), labels])


def test_absent_classes_are_left_out_of_the_bound() -> None:
    parts = model()
    x, labels = inputs(), torch.zeros(6, dtype=torch.int64)
    mask = torch.tensor([True, True, False]).expand(6, K)
    two = [parts[0][:2], parts[1][:2], parts[2], parts[3][:2]]
    torch.testing.assert_close(
        generative.bound(x, labels, *parts, mask), generative.bound(x, labels, *two)
    )


def test_kl_is_that_of_torch() -> None:
    mean, scale, _, _ = model()
    tau = torch.tensor(1.7, dtype=D64)
    q, p = distributions.Normal(mean, scale), distributions.Normal(0.0, tau.sqrt())
    expected = distributions.kl_divergence(q, p).sum()
    torch.testing.assert_close(diagonal.kl(mean, scale, tau.new_zeros(()), tau), expected)


# the exact posterior -----------------------------------------------------------------------------


def labelled(n: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, P, generator=rng(seed), dtype=D64)
    return x, torch.randint(K, (n,), generator=rng(seed + 1))


def test_the_posterior_is_conjugate() -> None:
    """Against Bayesian linear regression on the indicators of the classes."""
    x, labels = labelled(7)
    noise, tau = torch.tensor([0.4, 1.3], dtype=D64), torch.tensor(0.8, dtype=D64)
    statistics = classes.Statistics.of(x, labels, K)
    mean, scale = classes.posterior(statistics, noise, tau)
    design = torch.nn.functional.one_hot(labels, K).double()  # (N, K)
    for p in range(P):
        precision = torch.eye(K, dtype=D64) / tau + design.T @ design / noise[p]
        covariance = torch.linalg.inv(precision)
        torch.testing.assert_close(scale[:, p] ** 2, covariance.diagonal())
        torch.testing.assert_close(mean[:, p], covariance @ design.T @ x[:, p] / noise[p])


def test_the_posterior_maximises_the_elbo_of_the_joint_likelihood() -> None:
    """Autograd: Σ_n E log N(x_n; μ_{y_n}, Σ) − KL has no slope at the conjugate posterior."""
    x, labels = labelled(20)
    noise, tau = torch.tensor([0.4, 1.3], dtype=D64), torch.tensor(0.8, dtype=D64)
    found = classes.posterior(classes.Statistics.of(x, labels, K), noise, tau)
    mean, log_scale = found[0].requires_grad_(), found[1].log().requires_grad_()
    normal = distributions.Normal(mean[labels], noise.sqrt())
    expected = normal.log_prob(x).sum() - 0.5 * (log_scale.exp().square()[labels] / noise).sum()
    elbo = expected - diagonal.kl(mean, log_scale.exp(), tau.new_zeros(()), tau)
    for slope in torch.autograd.grad(elbo, (mean, log_scale)):
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-10, rtol=0)


def test_weights_count_as_rows() -> None:
    x, labels = labelled(10)
    twice = classes.Statistics.of(x.repeat(2, 1), labels.repeat(2), K)
    weighed = classes.Statistics.of(x, labels, K, torch.full((10,), 2.0))
    for a, b in zip(twice, weighed, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("learn_prior", [False, True])
def test_the_fit_maximises_evidence_and_prior(learn_prior) -> None:
    x, labels = labelled(40)
    x = x + 2 * torch.randn(K, P, generator=rng(8), dtype=D64)[labels]
    statistics = classes.Statistics.of(x, labels, K)
    found = classes.fit(
        statistics,
        torch.tensor(1.0, dtype=D64),
        learn_prior=learn_prior,
        steps=5000,
        tolerance=1e-12,
    )
    log_noise = found.noise.log().requires_grad_()
    log_tau = found.prior_variance.log().requires_grad_()
    same = (labels[:, None] == labels).double()
    objective = classes.log_noise_prior(log_noise.exp())
    for p in range(P):
        covariance = log_tau.exp() * same + log_noise[p].exp() * torch.eye(40, dtype=D64)
        evidence = distributions.MultivariateNormal(torch.zeros(40, dtype=D64), covariance)
        objective = objective + evidence.log_prob(x[:, p])
    slopes = torch.autograd.grad(objective, (log_noise, log_tau))
    torch.testing.assert_close(slopes[0], torch.zeros(P, dtype=D64), atol=1e-6, rtol=0)
    if learn_prior:
        assert abs(float(slopes[1])) < 1e-6
    else:
        assert float(found.prior_variance) == 1.0
    for a, b in zip(found[:2], classes.posterior(statistics, *found[2:]), strict=True):
        torch.testing.assert_close(a, b)


def test_known_noise_and_means_are_recovered_and_covered() -> None:
    """Over 300 data sets 90 % intervals of the means hold the true ones as often as they say."""
    truth = torch.tensor([0.3, 0.7], dtype=D64)
    z, noise, inside = 1.6448536, [], []
    for seed in range(300):
        g = rng(1000 + seed)
        means = torch.randn(K, P, generator=g, dtype=D64)
        labels = torch.arange(60) % K
        x = means[labels] + truth.sqrt() * torch.randn(60, P, generator=g, dtype=D64)
        statistics = classes.Statistics.of(x, labels, K)
        found = classes.fit(statistics, torch.tensor(1.0, dtype=D64))
        noise.append(found.noise)
        inside.append(((means - found.mean).abs() < z * found.scale).double())
    share = float(torch.stack(inside).mean())
    assert abs(share - 0.9) < 4 * math.sqrt(0.09 / (300 * K * P)) + 0.01  # noise is estimated, too
    torch.testing.assert_close(torch.stack(noise).mean(0), truth, rtol=0.05, atol=0)


def test_the_class_prior_is_the_dirichlet_mean() -> None:
    found = classes.log_class_prior(torch.tensor([6.0, 2.0, 0.0], dtype=D64)).exp()
    torch.testing.assert_close(found, torch.tensor([7 / 11, 3 / 11, 1 / 11], dtype=D64))


def test_the_noise_prior_is_scipys_inverse_gamma() -> None:
    from scipy.stats import invgamma

    rows, start = 3.0, 0.7
    at = torch.tensor([0.2, 0.9, 4.0], dtype=D64)
    density = torch.from_numpy(invgamma(rows / 2, scale=rows * start / 2).logpdf(at.numpy()))
    found = torch.stack([classes.log_noise_prior(v.reshape(1), rows, start) for v in at])
    torch.testing.assert_close(found - found[0], density - density[0])


# mutual information ------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.1, 0.6, 2.0])
def test_information_is_that_of_the_means_given_the_input(spread) -> None:
    """By importance: draws of the means weighed by p(x | μ) are draws given x."""
    mean, scale, noise, log_prior = model(spread=spread)
    x, draws = inputs(), 200_000
    joint = log_likelihood(x, drawn_means(mean, scale, draws), noise, log_prior)
    weights = joint.logsumexp(-1).softmax(0)  # (S, B)
    log_p = joint.log_softmax(-1)
    predictive = torch.einsum("sb,sbk->bk", weights, log_p.exp())
    closed = generative.log_joint(x, mean, scale, noise, log_prior).softmax(-1)
    torch.testing.assert_close(predictive, closed, atol=0.02, rtol=0)
    divergence = (log_p.exp() * (log_p - closed.log())).sum(-1)  # (S, B)
    expected = (weights * divergence).sum(0)
    error = (weights.square() * (divergence - expected).square()).sum(0).sqrt()
    normals = torch.randn(20_000, K, P, generator=rng(4), dtype=D64)
    found = generative.information(x, mean, scale, noise, log_prior, normals)
    assert ((found - expected).abs() < 4 * error + 0.02 * expected).all()
    assert (found > 0).all() and (found < torch.special.entr(closed).sum(-1)).all()


def test_information_is_close_with_few_draws_and_gone_with_sure_means() -> None:
    parts, x = model(), inputs(40)
    many = generative.information(x, *parts, torch.randn(20_000, K, P, generator=rng(), dtype=D64))
    few = generative.information(x, *parts, torch.randn(1024, K, P, generator=rng(1), dtype=D64))
    assert float((few / many - 1).abs().mean()) < 0.1
    sure = [parts[0], 1e-6 * parts[1], *parts[2:]]
    none = generative.information(x, *sure, torch.randn(64, K, P, generator=rng(1), dtype=D64))
    assert float(none.abs().max()) < 1e-9


def test_information_of_absent_classes_and_far_inputs_is_finite() -> None:
    parts, normals = model(), torch.randn(64, K, P, generator=rng(1), dtype=D64)
    mask = torch.tensor([True, False, True]).expand(4, K)
    x = 10.0 ** torch.arange(4, dtype=D64)[:, None] * torch.ones(4, P, dtype=D64)
    found = generative.information(x, *parts, normals, mask)
    two = [part[[0, 2]] if len(part) == K else part for part in parts]
    torch.testing.assert_close(found, generative.information(x, *two, normals[:, [0, 2]]))
    assert bool(torch.isfinite(found).all())
    single = torch.tensor([False, True, False]).expand(4, K)
    alone = generative.information(x, *parts, normals, single)
    torch.testing.assert_close(alone, torch.zeros(4, dtype=D64), atol=1e-9, rtol=0)


# dimensions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [64, 1024])
def test_logits_do_not_grow_with_the_dimension(raw) -> None:
    """The same classes in ever more raw dimensions: the axes keep the logits on one scale."""
    from bayestune.posterior import projection

    g = rng(3)
    labels = torch.arange(300) % K
    centres = 3 * torch.randn(K, 8, generator=g, dtype=D64)
    core = centres[labels] + torch.randn(300, 8, generator=g, dtype=D64)
    lift = torch.randn(8, raw, generator=g, dtype=D64)  # E‖φ‖² grows with raw
    phi = core @ lift + 0.1 * torch.randn(300, raw, generator=g, dtype=D64)
    axes = projection.measure(phi, 16)
    x = projection.project(phi, axes)
    found = classes.fit(classes.Statistics.of(x, labels, K), torch.tensor(1.0, dtype=D64))
    log_prior = torch.full((K,), -math.log(K), dtype=D64)
    logits = generative.log_joint(x, *found[:3], log_prior)
    spread = float((logits - logits.mean(1, keepdim=True)).std())
    assert 3 < spread < 30
    # Without them, one noise for all raw features, they are out of all proportion.
    noise = phi.var(0)
    naive = generative.log_joint(
        phi,
        torch.stack([phi[labels == k].mean(0) for k in range(K)]),
        torch.zeros(K, raw, dtype=D64),
        noise,
        log_prior,
    )
    if raw == 1024:
        assert float((naive - naive.mean(1, keepdim=True)).std()) > 100
