"""The polar factor against singular values, and what it does to directions that are not there."""

from __future__ import annotations

import pytest
import torch

from bayestune.geometry import polar_factor, random_point

F64 = torch.float64


def matrix(values, seed=0, dtype=F64):
    """A matrix with given singular values, and its singular vectors."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    U, V = (random_point(n, n, generator=g, dtype=F64) for _ in range(2))
    return (U * torch.tensor(values, dtype=F64) @ V.T).to(dtype), U, V


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_it_is_the_orthogonal_factor_of_the_singular_value_decomposition(scale, dtype):
    M, U, V = matrix([3.0, 2.0, 1.0, 0.5, 0.1], dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    found = polar_factor((M.double() * scale).to(dtype))
    torch.testing.assert_close(found.double(), U @ V.T, rtol=0, atol=tolerance)


def test_every_matrix_of_a_stack_is_treated_by_itself():
    stack = torch.stack([matrix([3.0, 1.0, 0.2], seed=k)[0] * 10.0**k for k in range(4)])
    each = torch.stack([polar_factor(M) for M in stack])
    torch.testing.assert_close(polar_factor(stack), each, rtol=0, atol=1e-14)
    torch.testing.assert_close(polar_factor(stack[:, None])[:, 0], each, rtol=0, atol=1e-14)


def test_it_rotates_with_its_argument():
    M, _, _ = matrix([2.0, 1.0, 1e-3, 1e-5])
    g = torch.Generator().manual_seed(5)
    Q, R = (random_point(4, 4, generator=g, dtype=F64) for _ in range(2))
    torch.testing.assert_close(polar_factor(Q @ M @ R), Q @ polar_factor(M) @ R, rtol=0, atol=1e-12)


def test_rounding_is_not_blown_up_to_a_direction():
    M, U, V = matrix([1.0, 1e-2, 1e-7, 0.0])
    lengths = (U.T @ polar_factor(M) @ V).diagonal()
    assert lengths[0] == pytest.approx(1, abs=1e-9)
    assert lengths[1] == pytest.approx(1, abs=1e-3)
    assert lengths[2] == pytest.approx(1.875**10 * 1e-7, rel=1e-3)
    assert abs(lengths[3]) < 1e-12
    assert (lengths.diff() < 1e-9).all(), "a stronger direction never steps less"


def test_nothing_gives_nothing():
    assert not polar_factor(torch.zeros(3, 2, 2)).any()
    assert polar_factor(torch.eye(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
