"""Weights through an inducing matrix against their exact prior, conditional and divergence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from bayestune.weights.inducing import InducedFactor, Inducing, frame

SHAPE = Inducing(size=2, flow=0, prior_scale=1.0, max_std=0.9, max_noise=1.0, start=0.3)
M, N, P, Q = 3, 4, 2, 2
DRAWS = 6000


def factor(shape: Inducing = SHAPE, rows: int = M, columns: int = N, spread=1.0) -> InducedFactor:
    """A factor in float64 whose D is not small."""
    torch.manual_seed(0)
    made = InducedFactor(rows, columns, shape, spread=spread).double()
    with torch.no_grad():
        made.d_rows.copy_(torch.linspace(-1, 0.5, len(made.d_rows)))
        made.d_columns.copy_(torch.linspace(0, 1, len(made.d_columns)))
        made.std_logit.add_(torch.randn_like(made.std_logit))
        if made.flow is not None:
            for parameter in made.flow.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
    return made


def exact(made: InducedFactor) -> tuple[Tensor, Tensor, Tensor]:
    """Cov(U), Cov(W, U) and Cov(W | U) of row-major vectors, as the paper writes them."""
    z_r, z_c = made.z_rows.detach(), made.z_columns.detach()
    d_r, d_c = (
        torch.nn.functional.softplus(d.detach()).diag() for d in (made.d_rows, made.d_columns)
    )
    covariance = torch.kron(z_r @ z_r.T + d_r @ d_r, z_c @ z_c.T + d_c @ d_c)
    cross = torch.kron(z_r.T, z_c.T)  # (M N, P Q)
    rest = torch.eye(M * N, dtype=torch.float64) - cross @ torch.linalg.solve(covariance, cross.T)
    return covariance, cross, rest


def roots(made: InducedFactor) -> tuple[Tensor, Tensor]:
    z_r, z_c = made.z_rows.detach(), made.z_columns.detach()
    d_r, d_c = (
        torch.nn.functional.softplus(d.detach()).diag() for d in (made.d_rows, made.d_columns)
    )
    return (
        torch.linalg.cholesky(z_r @ z_r.T + d_r @ d_r),
        torch.linalg.cholesky(z_c @ z_c.T + d_c @ d_c),
    )


def check_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Compare draws ``(S, d)`` with exact moments at four standard errors."""
    count = len(draws)
    variance = covariance.diagonal()
    assert bool(((draws.mean(0) - mean).abs() < 4 * (variance / count).sqrt()).all())
    centred = draws - mean
    found = centred.T @ centred / count
    error = ((variance[:, None] * variance + covariance.square()) / count).sqrt()
    assert bool(((found - covariance).abs() < 4.5 * error).all())


def test_the_rows_of_a_frame_are_orthonormal_whatever_z_is() -> None:
    torch.manual_seed(0)
    for z in (torch.randn(3, 5), torch.ones(3, 5), torch.zeros(3, 5), torch.randn(3, 2)):
        rows = frame(z, torch.full((3,), 1e-3))
        assert rows.dtype == torch.float64 and rows.shape == (3, z.shape[1] + 3)
        torch.testing.assert_close(
            rows @ rows.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8
        )


def test_given_u_a_draw_has_the_mean_and_covariance_of_the_conditional() -> None:
    """At λ = 1 and sd → 0: the Gaussian conditional of the prior, by its textbook formula."""
    made = factor(replace(SHAPE, max_std=1e-12, start=1e-13))
    with torch.no_grad():
        made.noise_logit.fill_(40.0)  # λ = 1
    covariance, cross, rest = exact(made)
    root_r, root_c = roots(made)
    u = root_r @ (made.mean.detach() / made.sigma) @ root_c.T
    mean = made.sigma * cross @ torch.linalg.solve(covariance, u.flatten())
    torch.testing.assert_close(made.centre().detach().flatten(), mean)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        draws = torch.stack([made.sample(random).flatten() for _ in range(DRAWS)])
    check_moments(draws, mean, made.sigma**2 * rest)


def test_lambda_scales_what_u_leaves_open_and_sd_what_it_says() -> None:
    made = factor()
    covariance, cross, rest = exact(made)
    root_r, root_c = roots(made)
    whole = torch.kron(root_r, root_c)
    with torch.no_grad():
        of_u = whole @ made.std.flatten().square().diag() @ whole.T
        lift = cross @ torch.linalg.inv(covariance)
        noise = float(made.noise.detach())
        expected = made.sigma**2 * (lift @ of_u @ lift.T + noise**2 * rest)
        random = torch.Generator().manual_seed(2)
        draws = torch.stack([made.sample(random).flatten() for _ in range(DRAWS)])
    assert 0.2 < noise < 0.4
    check_moments(draws, made.centre().detach().flatten(), expected)


def test_at_the_prior_a_weight_is_standard_normal_times_sigma() -> None:
    made = factor(replace(SHAPE, max_std=1.0, start=0.5), spread=0.0)
    with torch.no_grad():
        made.noise_logit.fill_(40.0)
        made.std_logit.fill_(40.0)
        random = torch.Generator().manual_seed(3)
        draws = torch.stack([made.sample(random).flatten() for _ in range(DRAWS)])
    eye = torch.eye(M * N, dtype=torch.float64)
    check_moments(draws, torch.zeros(M * N).double(), made.sigma**2 * eye)
    assert made.sigma == 1 / math.sqrt(N)
    torch.testing.assert_close(made.kl(), torch.zeros(()).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("flow", [0, 4])
def test_without_noise_it_is_the_centre(flow) -> None:
    made = factor(replace(SHAPE, flow=flow, max_std=1e-12, max_noise=1e-12, start=1e-13))
    with torch.no_grad():
        torch.testing.assert_close(made.sample(), made.centre(), rtol=0, atol=1e-11)
        assert made.centre().abs().max() > 0.05
    noisy = factor(replace(SHAPE, flow=flow))
    assert (noisy.sample() - noisy.centre()).abs().max() > 0.05


def test_the_divergence_is_that_of_the_joint_over_u_and_w() -> None:
    made = factor()
    std, noise = made.std.detach().flatten(), float(made.noise.detach())
    m = (made.mean / made.sigma).detach().flatten()
    of_u = kl_divergence(
        Independent(Normal(m, std), 1),
        Independent(Normal(torch.zeros_like(m), torch.ones_like(m)), 1),
    )
    _, _, rest = exact(made)
    zero = torch.zeros(M * N, dtype=torch.float64)
    of_w = kl_divergence(MultivariateNormal(zero, noise**2 * rest), MultivariateNormal(zero, rest))
    torch.testing.assert_close(made.kl().detach(), of_u + of_w)


def test_under_a_flow_the_divergence_is_estimated_without_bias() -> None:
    """Against log q − log p of the flowed u, q by the change of variables through autograd."""
    made = factor(replace(SHAPE, flow=4))
    assert made.flow is not None
    m, std = (made.mean / made.sigma).detach(), made.std.detach()
    torch.manual_seed(4)
    with torch.no_grad():
        estimates = torch.stack([made.kl() for _ in range(4000)])
    left_open = M * N * (0.5 * made.noise**2 - made.noise.log() - 0.5).item()
    before = m + std * torch.randn(4000, P, Q, dtype=torch.float64)
    log_q = Normal(m, std).log_prob(before).sum((1, 2))
    for i in range(P):
        slope = torch.autograd.functional.jacobian(
            lambda x: made.flow(x)[0].sum(0), before[:, i]
        )  # (Q, 4000, Q)
        log_q = log_q - torch.linalg.slogdet(slope.permute(1, 0, 2))[1]
    u = made.flow(before)[0].detach()
    log_p = Normal(0.0, 1.0).log_prob(u).sum((1, 2))
    brute = log_q - log_p
    error = math.hypot(float(estimates.std()), float(brute.std())) / math.sqrt(4000)
    assert abs(float(estimates.mean() - brute.mean()) - left_open) < 4 * error
    assert float(brute.mean()) > 10 * error


def test_gradients_reach_every_part() -> None:
    made = factor(replace(SHAPE, flow=4))
    (made.sample().square().sum() + made.kl()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in made.parameters())


def test_a_known_posterior_is_found() -> None:
    """Linear-Gaussian data on one column: with λ and sd free the bound is tight where u is W.

    Z = I and D → 0 make u the weights themselves, so that q can be the exact posterior of
    independent observations of each weight.
    """
    shape = Inducing(size=2, flow=0, prior_scale=1.0, max_std=1.0, max_noise=1.0, start=0.1)
    torch.manual_seed(0)
    made = InducedFactor(2, 1, shape, spread=1.0).double()
    with torch.no_grad():
        made.z_rows.copy_(torch.eye(2))
        made.z_columns.fill_(1.0)
        for d in (made.d_rows, made.d_columns):
            d.fill_(-16.0)
    y, precision = torch.tensor([1.5, -0.7]).double(), torch.tensor([4.0, 1.0]).double()
    moving = [made.mean, made.std_logit, made.noise_logit]
    optimizer = torch.optim.Adam(moving, lr=0.02)
    means, stds = [], []
    for step in range(1600):
        optimizer.zero_grad()
        error = (made.sample().flatten() - y).square()
        (0.5 * (precision * error).sum() + made.kl()).backward()
        optimizer.step()
        if step >= 800:
            means.append(made.mean.detach().flatten().clone())
            stds.append(made.std.detach().flatten().clone())
    expected = precision * y / (1 + precision)
    torch.testing.assert_close(torch.stack(means).mean(0), expected, rtol=0, atol=0.03)
    expected = (1 + precision).rsqrt()
    torch.testing.assert_close(torch.stack(stds).mean(0), expected, rtol=0, atol=0.03)


# sizes ------------------------------------------------------------------------------------------

PAPER = Inducing(size=9, flow=16, prior_scale=0.1, max_std=0.1, max_noise=0.03, start=1e-3)


def count(rows: int, columns: int, shape: Inducing = PAPER) -> int:
    """Parameters of one factor, which no memory is taken for."""
    with torch.device("meta"):
        made = InducedFactor(rows, columns, shape, spread=0.0)
    return sum(p.numel() for p in made.parameters())


def test_the_inducing_matrix_is_no_larger_than_its_factor() -> None:
    made = InducedFactor(4, 30, PAPER, spread=0.0)
    assert made.mean.shape == (4, 9) and made.flow is not None
    assert made.centre().shape == (4, 30)
    assert InducedFactor(30, 1, PAPER, spread=0.0).mean.shape == (9, 1)


def test_parameters_at_the_papers_shapes() -> None:
    """q_proj of 32 layers and lm_head of Llama-2-7B at rank 8, in place of LoRA's own."""
    rank, width, vocabulary = 8, 4096, 32_000
    layers = {(width, width): 32, (vocabulary, width): 1}
    extra = 0
    for (out, columns), times in layers.items():
        own = count(rank, columns) + count(out, rank)
        extra += times * (own - rank * (out + columns))
    assert round(extra / 1e6, 2) == 0.41  # 0.42 with 9 rows for a rank of 8, as published
    # By hand: p q means and deviations, p + q of D, λ, Z of both sides, and the flow.
    p, q = 8, 9
    flow = (q * 16 + 16) + 4 * (16 * 16 + 16) + (16 * 2 * q + 2 * q)
    assert count(rank, width) == 2 * p * q + p + q + 1 + p * rank + q * width + flow
    # As published both are 9: the count of the paper, 0.42 million.
    q_proj = 2 * (2 * 81 + 18 + 1 + flow + 9 * rank) + 9 * 2 * width
    lm_head = 2 * (2 * 81 + 18 + 1 + flow + 9 * rank) + 9 * (width + vocabulary)
    published = 32 * (q_proj - 8 * 2 * width) + lm_head - 8 * (width + vocabulary)
    assert round(published / 1e6, 2) == 0.42
