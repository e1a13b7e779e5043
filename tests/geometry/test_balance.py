"""Balanced factors: the same product, equal sizes, the least norm, one pair for all gauges."""

from __future__ import annotations

import pytest
import torch

from bayestune.geometry import balanced


def pair(m: int, r: int, n: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(s, generator=g, dtype=torch.float64) for s in ((m, r), (r, n)))


@pytest.mark.parametrize("shape", [(7, 3, 5), (3, 3, 9), (2, 4, 6), (6, 4, 2)])
def test_product_balance_and_norm(shape) -> None:
    B, A = pair(*shape)
    new_B, new_A = balanced(B, A)
    torch.testing.assert_close(new_B @ new_A, B @ A)
    torch.testing.assert_close(new_B.T @ new_B, new_A @ new_A.T)
    nuclear = torch.linalg.svdvals(B @ A).sum()
    torch.testing.assert_close(new_B.square().sum() + new_A.square().sum(), 2 * nuclear)


def test_every_gauge_gives_the_same_pair_up_to_a_rotation() -> None:
    B, A = pair(7, 3, 5)
    R, _ = pair(3, 3, 3, seed=1)
    first, second = balanced(B, A), balanced(B @ torch.linalg.inv(R), R @ A)
    torch.testing.assert_close(first[0] @ first[0].T, second[0] @ second[0].T)
    torch.testing.assert_close(first[1].T @ first[1], second[1].T @ second[1])


def test_of_lower_rank_and_of_nothing() -> None:
    B, A = pair(7, 3, 5)
    B[:, 2] = B[:, 1]
    new_B, new_A = balanced(B, A)
    torch.testing.assert_close(new_B @ new_A, B @ A)
    zero = balanced(torch.zeros(7, 3), A.float())
    assert zero[0].dtype == torch.float32 and not zero[0].any() and not zero[1].any()
