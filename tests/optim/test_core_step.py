"""The step of a core Θ: its formula, its indifference to bases, and the rank it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayestune.errors import ConfigError
from bayestune.geometry import random_point, stable_rank
from bayestune.optim import StiefelAdam, build, param_groups

F64 = torch.float64


def core(params, **options):
    return {"params": params, "manifold": "core", **options}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_it_is_the_documented_recursion():
    theta = nn.Parameter(normal(5, 5))
    expected, M = theta.detach().clone(), torch.zeros(5, 5, dtype=F64)
    optimizer = StiefelAdam([core([theta], lr=0.01, weight_decay=0.3)], betas=(0.8, 0.99))
    for k in range(12):
        G = normal(5, 5, seed=k + 1)
        theta.grad = G.clone()
        optimizer.step()
        M = 0.8 * M + 0.2 * G
        U, _, Vh = torch.linalg.svd(0.8 * M + 0.2 * G)
        expected = (1 - 0.01 * 0.3) * expected - 0.01 * 5**0.5 * U @ Vh
    torch.testing.assert_close(theta.detach(), expected, rtol=0, atol=1e-6)


def test_a_step_has_the_size_of_adams():
    theta = nn.Parameter(torch.zeros(8, 8))
    theta.grad = normal(8, 8).float()
    StiefelAdam([core([theta], lr=0.01)]).step()
    assert float(theta.detach().square().mean().sqrt()) == pytest.approx(0.01, rel=1e-3)


def test_the_update_does_not_depend_on_the_bases_of_the_factors():
    X, Y = (
        random_point(n, 4, generator=torch.Generator().manual_seed(n), dtype=F64) for n in (9, 7)
    )
    g = torch.Generator().manual_seed(1)
    Q, R = (random_point(4, 4, generator=g, dtype=F64) for _ in range(2))
    target = normal(9, 7, seed=3)

    def learnt(X, Y, step):
        theta = nn.Parameter(torch.zeros(4, 4, dtype=F64))
        group = core([theta]) if step == "spectral" else {"params": [theta]}
        optimizer = StiefelAdam([group], lr=0.02)
        for _ in range(30):
            optimizer.zero_grad()
            (X @ theta @ Y.T - target).square().sum().backward()
            optimizer.step()
        return X @ theta.detach() @ Y.T

    assert torch.allclose(learnt(X, Y, "spectral"), learnt(X @ Q, Y @ R, "spectral"), atol=1e-9)
    assert not torch.allclose(learnt(X, Y, "adam"), learnt(X @ Q, Y @ R, "adam"), atol=1e-3)


def regress(step):
    """Fit a map of rank 4 whose inputs share a mean, as those of a transformer's layer do.

    Returns the mean square error on other inputs and the stable rank of Θ, on the way.
    """
    g = torch.Generator().manual_seed(4)
    X = random_point(24, 8, generator=g, dtype=F64)
    Y = random_point(32, 8, generator=g, dtype=F64)
    truth = X[:, :4] @ Y[:, :4].T
    mean = Y @ torch.randn(8, generator=g, dtype=F64) * 4
    theta = nn.Parameter(torch.zeros(8, 8, dtype=F64))
    group = core([theta]) if step == "spectral" else {"params": [theta]}
    optimizer = StiefelAdam([group], lr=0.01)
    other = mean + torch.randn(500, 32, generator=g, dtype=F64)
    ranks, errors = [], []
    for _ in range(100):
        x = mean + torch.randn(64, 32, generator=g, dtype=F64)
        optimizer.zero_grad()
        (x @ (X @ theta @ Y.T - truth).T).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            ranks.append(float(stable_rank(theta)))
            errors.append(float((other @ (X @ theta @ Y.T - truth).T).square().mean()))
    return errors, ranks


def test_inputs_with_a_common_mean_do_not_collapse_the_rank():
    (errors, ranks), (adam_errors, adam_ranks) = regress("spectral"), regress("adam")
    assert ranks[19] > 2 and adam_ranks[19] < 1.5
    assert ranks[-1] == pytest.approx(4, abs=1)
    assert errors[-1] < 0.5 * adam_errors[-1]


def test_polar_layers_declare_their_core_and_the_paper_has_a_switch(polar_model):
    names = {id(p): name for name, p in polar_model.named_parameters()}

    def group_of(**options):
        groups = param_groups(polar_model, 1e-3, **options)
        return {names[id(p)].split(".")[-2]: g["manifold"] for g in groups for p in g["params"]}

    assert group_of() == {"polar_X": "stiefel", "polar_theta": "core", "polar_Y": "stiefel"}
    assert group_of(core="adam")["polar_theta"] == "euclidean"
    assert "core" in {g["manifold"] for g in build(polar_model).param_groups}
    with pytest.raises(ConfigError, match=r"core='spectrl' is unknown.*Did you mean 'spectral'"):
        param_groups(polar_model, 1e-3, core="spectrl")


def test_a_flattened_core_is_refused():
    theta = nn.Parameter(torch.zeros(4, 4))
    optimizer = StiefelAdam([core([theta], name="core")])
    theta.data = theta.data.flatten()
    theta.grad = torch.ones(16)
    with pytest.raises(ConfigError, match=r"core group 'core' has shape \(16,\); a matrix"):
        optimizer.step()


def test_its_state_is_saved_and_restored():
    def fresh():
        theta = nn.Parameter(normal(3, 3))
        return theta, StiefelAdam([core([theta], lr=0.1)])

    (a, whole), (b, first) = fresh(), fresh()
    for k in range(6):
        a.grad = normal(3, 3, seed=k)
        whole.step()
        if k == 3:
            state, first = first.state_dict(), StiefelAdam([core([b], lr=0.1)])
            first.load_state_dict(state)
        b.grad = normal(3, 3, seed=k)
        first.step()
    assert torch.equal(a, b)
