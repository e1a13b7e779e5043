"""IVON: what its curvature estimates, which posterior it finds, and that noise never stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.optim import Ivon


def spd(size: int, seed: int = 0) -> Tensor:
    """A positive definite matrix with a diagonal that is not constant."""
    A = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed)).double()
    return A @ A.T / size + torch.diag(torch.linspace(0.1, 2, size).double())


def take(optimizer: Ivon, loss: Any) -> None:
    """One step on a loss of no arguments."""
    optimizer.zero_grad()
    with optimizer.sampled():
        loss().backward()
    optimizer.step()


def test_on_a_quadratic_the_curvature_estimates_the_diagonal_of_the_hessian() -> None:
    torch.manual_seed(0)
    H, S = spd(4), 20000
    p = torch.nn.Parameter(torch.randn(S, 4).double())  # S problems side by side
    start = p.detach().clone()
    delta, ess, h0, rho = 0.3, 50.0, 1.7, 0.01
    optimizer = Ivon([p], 0.0, ess, hess_init=h0, weight_decay=delta, betas=(0.0, 1 - rho))
    take(optimizer, lambda: 0.5 * ((p @ H) * p).sum())
    assert torch.equal(p.detach(), start)  # the learning rate is 0
    h = optimizer.state[p]["hess"]
    # h = h₀ + ρ(ĥ − h₀) + ½ρ²(ĥ − h₀)²/(h₀ + δ), solved for ĥ near h₀
    scale = h0 + delta
    x = (2 * (h + delta) / scale - 1).sqrt() - 1  # ρ(ĥ − h₀)/(h₀ + δ)
    found = h0 + x * scale / rho
    error = found.std(0) / S**0.5
    assert ((found.mean(0) - H.diag()).abs() < 4 * error).all()
    assert (error < 0.2 * H.diag()).all()  # it says something


def regression() -> tuple[Tensor, Tensor, float]:
    """Inputs ``(N, d)``, targets ``(N,)`` and the variance of their noise."""
    random = torch.Generator().manual_seed(3)
    mix = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.7, 0.2], [0.0, 0.0, 1.5]]).double()
    X = torch.randn(40, 3, generator=random).double() @ mix
    y = X @ torch.tensor([1.0, -0.5, 0.3]).double() + torch.randn(40, generator=random).double()
    return X, y, 1.0


@pytest.mark.parametrize("kappa", [1.0, 0.25])
def test_on_a_linear_regression_it_finds_the_variational_posterior(kappa: float) -> None:
    """The best diagonal Gaussian has the posterior's mean, and the diagonal of its precision."""
    torch.manual_seed(1)
    X, y, noise = regression()
    N, prior_std = len(y), 0.7
    precision = X.T @ X / (noise * kappa) + torch.eye(3).double() / prior_std**2
    mean = torch.linalg.solve(precision, X.T @ y / (noise * kappa))
    copies = 200  # noise averages out over copies; they do not interact
    p = torch.nn.Parameter(torch.zeros(copies, 3).double())
    ess = N / kappa
    optimizer = Ivon(
        [p],
        0.05,
        ess,
        hess_init=20.0,
        weight_decay=1 / (ess * prior_std**2),
        betas=(0.9, 0.99),
        rescale_lr=False,
    )

    def loss() -> Tensor:
        return ((p @ X.T - y).square() / (2 * noise)).mean(1).sum()

    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 1500)
        take(optimizer, loss)
    variance = optimizer.deviations()[p].square()
    torch.testing.assert_close(1 / (1 / variance).mean(0), 1 / precision.diag(), rtol=0.03, atol=0)
    error = p.detach().std(0) / copies**0.5
    assert ((p.detach().mean(0) - mean).abs() < 4 * error).all()
    assert (p.detach().std(0) < precision.diag().rsqrt() / 2).all()  # settled well within q


def test_the_step_is_that_of_the_paper() -> None:
    """Against a transcription of algorithm 1, in numbers, over three steps."""
    torch.manual_seed(2)
    p = torch.nn.Parameter(torch.randn(5).double())
    lam, delta, h0, b1, b2, lr, xi = 30.0, 0.2, 0.5, 0.8, 0.95, 0.1, 3.0
    optimizer = Ivon([p], lr, lam, hess_init=h0, weight_decay=delta, betas=(b1, b2), clip_radius=xi)
    m, h, g_bar = p.detach().clone(), torch.full((5,), h0).double(), torch.zeros(5).double()
    clipped = 0
    for t in range(1, 4):
        optimizer.zero_grad()
        with optimizer.sampled():
            theta = p.detach().clone()
            (p**3 + torch.cos(3 * p)).sum().backward()
        optimizer.step()
        g = 3 * theta**2 - 3 * torch.sin(3 * theta)
        h_hat = lam * (theta - m) * g * (h + delta)
        h = b2 * h + (1 - b2) * h_hat + 0.5 * (1 - b2) ** 2 * (h - h_hat) ** 2 / (h + delta)
        g_bar = b1 * g_bar + (1 - b1) * g
        u = (g_bar / (1 - b1**t) + delta * m) / (h + delta)
        clipped += int((u.abs() > xi).sum())
        m = m - lr * (h0 + delta) * u.clamp(-xi, xi)
        torch.testing.assert_close(p.detach(), m)
        torch.testing.assert_close(optimizer.deviations()[p], (lam * (h + delta)) ** -0.5)
    assert 0 < clipped < 15


def test_the_precision_stays_positive_whatever_the_noise() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(1000))
    optimizer = Ivon([p], 0.1, 1.0, hess_init=1e-3, weight_decay=1e-3, betas=(0.9, 0.5))
    scale = torch.randn(1000) * 100
    for _ in range(20):
        take(optimizer, lambda: (scale * torch.sin(p)).sum())
    assert torch.isfinite(optimizer.deviations()[p]).all() and torch.isfinite(p).all()


def test_weights_are_restored_to_the_bit_also_by_an_exception() -> None:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.randn(3, 4))]
    before = [p.detach().clone() for p in params]
    optimizer = Ivon(params, 0.1, 10.0)
    with pytest.raises(ZeroDivisionError), optimizer.sampled():
        assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True))
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_draws_have_the_standard_deviation_that_is_reported() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.full((20000,), 3.0))
    optimizer = Ivon([p], 0.1, 25.0, hess_init=0.7, weight_decay=0.3)
    with optimizer.sampled():
        z = (p.detach() - 3) / optimizer.deviations()[p]
    assert optimizer.deviations()[p][0] == pytest.approx(0.2)
    assert abs(float(z.mean())) < 4 / 20000**0.5
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / 20000) ** 0.5


def test_half_precision_parameters_have_their_state_in_float32() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = Ivon([p], 0.01, 100.0)
    take(optimizer, lambda: p.square().sum())
    assert {t.dtype for t in optimizer.state[p].values() if isinstance(t, Tensor)} == {
        torch.float32
    }
    other = Ivon([torch.nn.Parameter(p.detach().clone())], 0.01, 100.0)
    other.load_state_dict(optimizer.state_dict())
    (q,) = other.param_groups[0]["params"]
    assert torch.equal(other.state[q]["hess"], optimizer.state[p]["hess"])


def test_a_restored_state_continues_bit_by_bit() -> None:
    H = spd(4).float()

    def start() -> tuple[torch.nn.Parameter, Ivon]:
        p = torch.nn.Parameter(torch.ones(3, 4))
        return p, Ivon([{"params": [p], "name": "all"}], 0.1, 20.0, betas=(0.9, 0.9))

    def run(p: torch.nn.Parameter, optimizer: Ivon, steps: int) -> None:
        for _ in range(steps):
            take(optimizer, lambda: 0.5 * ((p @ H) * p).sum())

    torch.manual_seed(0)
    p, optimizer = start()
    run(p, optimizer, 5)
    kept, rng, state = p.detach().clone(), torch.get_rng_state(), optimizer.state_dict()
    json.dumps(state["param_groups"])  # what a checkpoint writes of it
    state = {**state, "state": {k: dict(v) for k, v in state["state"].items()}}
    for entries in state["state"].values():
        entries |= {k: v.clone() for k, v in entries.items() if isinstance(v, Tensor)}
    run(p, optimizer, 5)
    q, other = start()
    with torch.no_grad():
        q.copy_(kept)
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    run(q, other, 5)
    assert torch.equal(p, q) and torch.equal(optimizer.deviations()[p], other.deviations()[q])


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = Ivon([used, unused], 0.1, 10.0)
    take(optimizer, lambda: used.square().sum())
    assert torch.equal(unused, torch.ones(3)) and not torch.equal(used, torch.ones(3))


def test_a_step_without_a_draw_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Ivon([p], 0.1, 10.0)
    p.sum().backward()
    with pytest.raises(ConfigError, match=r"within Ivon\.sampled"):
        optimizer.step()
    take(optimizer, lambda: p.sum())
    with pytest.raises(ConfigError, match=r"within Ivon\.sampled"):
        optimizer.step()  # the draw was used
    with optimizer.sampled(), pytest.raises(ConfigError, match="no closure"):
        optimizer.step(lambda: p.sum())


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"ess": 0.0}, "ess is 0.0; expected above 0"),
        ({"hess_init": -1.0}, "hess_init is -1.0; expected above 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; expected 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Ivon([torch.nn.Parameter(torch.ones(3))], **{"lr": 0.1, "ess": 10.0, **option})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parameters_may_lie_on_several_devices() -> None:
    params = [torch.nn.Parameter(torch.ones(3, device=d)) for d in ("cpu", "cuda")]
    optimizer = Ivon(params, 0.1, 10.0)
    take(optimizer, lambda: sum(p.square().sum().cpu() for p in params))
    assert [optimizer.deviations()[p].device.type for p in params] == ["cpu", "cuda"]
