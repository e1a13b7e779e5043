"""Stable rank from factors against the singular values of the full product."""

from __future__ import annotations

import pytest
import torch

from bayestune.errors import ConfigError, NumericsError
from bayestune.geometry import random_point, stable_rank, stable_rank_lora

F64 = torch.float64


def full(W):
    s = torch.linalg.svdvals(W.double())
    return (s.square().sum(-1) / s[..., 0].square()).squeeze()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (4, 4), (3, 5)])
def test_any_factors_agree_with_the_full_product(generator, lead, p, q):
    X = torch.randn(*lead, 30, p, generator=generator, dtype=F64)
    theta = torch.randn(*lead, p, q, generator=generator, dtype=F64)
    Y = torch.randn(*lead, 20, q, generator=generator, dtype=F64)
    result = stable_rank(theta, X, Y)
    assert result.shape == lead
    torch.testing.assert_close(result, full(X @ theta @ Y.mT), rtol=1e-10, atol=0)
    torch.testing.assert_close(stable_rank(theta, Y=Y), full(theta @ Y.mT), rtol=1e-10, atol=0)


def test_orthonormal_factors_may_be_left_out(generator):
    X, Y = (random_point(n, 6, generator=generator, dtype=F64) for n in (50, 40))
    theta = torch.randn(6, 6, generator=generator, dtype=F64)
    expected = full(X @ theta @ Y.mT)
    torch.testing.assert_close(stable_rank(theta), expected)
    torch.testing.assert_close(stable_rank(theta, X, Y), expected)
    torch.testing.assert_close(stable_rank(torch.eye(6)), torch.tensor(6.0, dtype=F64))


def test_lora_factors_agree_with_the_full_product(generator):
    B = torch.randn(30, 4, generator=generator)
    A = torch.randn(4, 20, generator=generator) * torch.tensor([9.0, 1.0, 1.0, 0.1])[:, None]
    result = stable_rank_lora(B, A)
    torch.testing.assert_close(result, full(B.double() @ A.double()), rtol=1e-6, atol=0)
    assert 1 <= result <= 4


def test_a_zero_update_has_stable_rank_zero(generator):
    A = torch.randn(4, 20, generator=generator)
    assert stable_rank_lora(torch.zeros(30, 4), A).item() == 0.0
    assert stable_rank(torch.zeros(2, 3, 3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_drops_out_at_the_ends_of_the_range(generator, scale):
    B, A = (torch.randn(*s, generator=generator) for s in ((30, 4), (4, 20)))
    torch.testing.assert_close(stable_rank_lora(scale * B, scale * A), stable_rank_lora(B, A))
    theta = torch.randn(4, 4, generator=generator)
    torch.testing.assert_close(stable_rank(scale * theta), stable_rank(theta))


def test_gradients_do_not_flow():
    theta = torch.eye(3, requires_grad=True)
    assert not stable_rank(theta).requires_grad


def test_misfitting_and_broken_factors_are_refused():
    with pytest.raises(ConfigError, match="must be a matrix"):
        stable_rank(torch.ones(3))
    with pytest.raises(ConfigError, match=r"Y has shape \(3, 20\).*transpose"):
        stable_rank(torch.eye(3), torch.ones(20, 3), torch.ones(3, 20))
    with pytest.raises(ConfigError, match="lora_B"):
        stable_rank_lora(torch.ones(4, 30), torch.ones(20, 4))
    with pytest.raises(NumericsError, match="X holds NaN"):
        stable_rank(torch.eye(3), torch.full((20, 3), float("nan")))
