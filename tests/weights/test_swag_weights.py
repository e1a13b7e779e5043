"""The Gaussian of a path: moments, joint draws, which steps are snapshots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayestune.errors import ConfigError
from bayestune.weights import Site, SwagWeights, spread
from bayestune.weights.swag import Trajectory

OPTIONS: dict[str, Any] = {"start": 0.0, "snapshots": 100, "columns": 4, "scale": 1.0}


def swag(**options: Any) -> SwagWeights:
    """SWAG over a layer's map of 2 × 2 weights and a head of 1 × 3."""
    layer, head = nn.Linear(2, 2, bias=False), nn.Linear(3, 1, bias=False)
    sites = {"layer.A": Site(layer, layer.weight, layer), "head": Site(head, head.weight)}
    return SwagWeights(sites, **{**OPTIONS, **options})


def walk(weights: SwagWeights, steps: int, seed: int = 0) -> Tensor:
    """Move the weights and let them be noted; return all positions ``(steps, 7)`` in float64."""
    random = torch.Generator().manual_seed(seed)
    path = []
    mix = torch.randn(7, 7, generator=random)  # correlates the sites
    for step in range(1, steps + 1):
        position = 0.5 + 0.1 * mix @ torch.randn(7, generator=random)
        with torch.no_grad():
            weights.sites["layer.A"].weight.copy_(position[:4].view(2, 2))
            weights.sites["head"].weight.copy_(position[4:].view(1, 3))
        weights.after_step(step, steps)
        path.append(position.double())
    return torch.stack(path)


def defined(path: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, diagonal and low-rank covariance by their definitions, of positions ``(n, d)``."""
    running = path.cumsum(0) / torch.arange(1, len(path) + 1)[:, None]
    D = (path - running)[-columns:]  # (K, d)
    diagonal = (path.square().mean(0) - path.mean(0).square()).diag()
    return path.mean(0), diagonal, D.T @ D / (len(D) - 1)


def drawn(weights: SwagWeights, draws: int) -> Tensor:
    """Deviations of all weights under draws, ``(S, 7)``."""
    each = [weights.deviations(name, range(draws), 3).flatten(1) for name in weights.sites]
    return torch.cat(each, 1).double()


@pytest.mark.parametrize("steps", [3, 4, 13])
def test_the_moments_of_a_path_are_those_of_its_definition(steps: int) -> None:
    weights = swag()
    path = walk(weights, steps)
    mean, diagonal, low_rank = defined(path, 4)
    names = list(weights.sites)
    got = torch.cat([weights.path(n).mean.flatten() for n in names]).double()
    torch.testing.assert_close(got, mean, rtol=1e-5, atol=1e-6)
    got = torch.cat([weights.path(n).variance.flatten() for n in names]).double()
    torch.testing.assert_close(got, diagonal.diag(), rtol=1e-4, atol=1e-7)
    F = torch.cat([weights.path(n).factor.flatten(1) for n in names], 1).double()  # (K, 7)
    torch.testing.assert_close(F.T @ F, low_rank, rtol=1e-4, atol=1e-7)
    assert weights.collected == steps


def test_small_moves_of_large_weights_are_not_lost_to_rounding() -> None:
    path = 3.0 + 1e-5 * torch.randn(50, 1, 64, generator=torch.Generator().manual_seed(0))
    kept = Trajectory(path[0], 2)
    for weight in path:
        kept.add(weight)
    exact = path.double().var(0, correction=0)
    torch.testing.assert_close(kept.variance.double(), exact, rtol=0.05, atol=0)
    naive = path.square().mean(0) - path.mean(0).square()
    assert not torch.allclose(naive.double(), exact, rtol=0.5)


@pytest.mark.parametrize(("steps", "scale"), [(13, 1.0), (3, 2.0)])
def test_draws_have_the_covariance_of_the_paper_across_sites(steps: int, scale: float) -> None:
    weights = swag(scale=scale)
    _, diagonal, low_rank = defined(walk(weights, steps), 4)
    expected = scale * 0.5 * (diagonal + low_rank)
    S = 6000
    z = drawn(weights, S)
    d = expected.diag()
    error = ((d[:, None] * d + expected.square()) / S).sqrt()
    assert ((z.T @ z / S - expected).abs() < 4 * error).all()
    assert (z.mean(0).abs() < 4 * (d / S).sqrt()).all()
    # One z₂ for all: without it the block between the sites would be zero.
    assert (expected[:4, 4:].abs() > 8 * error[:4, 4:]).any()
    std = torch.cat([weights.std(name).flatten() for name in weights.sites]).double()
    torch.testing.assert_close(std.square(), d, rtol=1e-4, atol=1e-7)


def test_independent_snapshots_of_a_gaussian_give_its_variances_back() -> None:
    truth = torch.tensor([0.1, 1.0, 3.0])
    n = 4000
    kept = Trajectory(truth[None], n)
    for z in torch.randn(n, 1, 3, generator=torch.Generator().manual_seed(1)):
        kept.add(truth * z)
    variance = 0.5 * (kept.variance + kept.factor.square().sum(0)).flatten()
    assert ((variance / truth.square() - 1).abs() < 4 * (2 / n) ** 0.5).all()


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    weights = swag()
    walk(weights, 6)
    few, many = weights.deviations("head", [2], 0), weights.deviations("head", range(5), 0)
    assert torch.equal(few[0], many[2])
    assert not torch.equal(many[2], many[3])
    assert not torch.equal(few, weights.deviations("head", [2], 1))


def test_snapshots_are_evenly_spaced_over_the_end() -> None:
    def taken(total: int, **options: Any) -> list[int]:
        weights = swag(**options)
        counts = []
        for step in range(1, total + 1):
            weights.after_step(step, total)
            counts.append(weights.collected)
        return [s for s in range(1, total + 1) if counts[s - 1] > ([0, *counts])[s - 1]]

    assert taken(20, start=0.5, snapshots=5) == [12, 14, 16, 18, 20]
    assert taken(10, start=0.0, snapshots=3) == [4, 7, 10]
    assert taken(6, start=0.5, snapshots=50) == [4, 5, 6]


def test_too_short_a_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights.start=0.9 leaves 1 of 10 steps; .* two snap"):
        swag(start=0.9).require_steps(10)
    swag(start=0.8).require_steps(10)


def test_another_training_starts_anew() -> None:
    weights = swag()
    walk(weights, 9)
    path = walk(weights, 5, seed=2)
    mean = torch.cat([weights.path(n).mean.flatten() for n in weights.sites])
    torch.testing.assert_close(mean.double(), path.mean(0), rtol=1e-5, atol=1e-6)


def test_before_any_training_there_is_no_noise() -> None:
    assert not drawn(swag(), 3).any()


def test_a_temperature_divides_the_deviations_of_the_head_alone() -> None:
    weights = swag()
    walk(weights, 6)
    before, std = drawn(weights, 3), spread(weights.std, weights.sites)
    weights.fold_temperature(4.0)
    after = drawn(weights, 3)
    torch.testing.assert_close(after[:, 4:], before[:, 4:] / 4)
    assert torch.equal(after[:, :4], before[:, :4])
    assert spread(weights.std, weights.sites) == {
        "adapter": std["adapter"],
        "head": pytest.approx(std["head"] / 4),
    }


def test_the_mean_is_written_into_the_weights_and_not_stored_twice() -> None:
    weights = swag()
    path = walk(weights, 6)
    weights.take_mean()
    now = torch.cat([site.weight.detach().flatten() for site in weights.sites.values()])
    torch.testing.assert_close(now.double(), path.mean(0), rtol=1e-5, atol=1e-6)
    other = swag()
    stored = weights.tensors()
    assert not any(name.endswith("mean") for name in stored)
    other.load(stored)
    assert torch.equal(drawn(other, 3), drawn(weights, 3))
