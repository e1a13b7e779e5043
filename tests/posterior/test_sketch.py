"""Sketches of Gram matrices against their eigendecomposition."""

from __future__ import annotations

import pytest
import torch

from bayestune.posterior.sketch import Sketch

D = 60


def rows(count: int = 400, decay: float = 1.0, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, D + 1, dtype=torch.float64) ** -decay
    basis = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64)).Q
    return torch.randn(count, D, generator=g, dtype=torch.float64) * scale @ basis.T


def sketched(x, columns, cuts=(1,)):
    sketch = Sketch(D, columns, x)
    for part in x.tensor_split(len(cuts)):
        sketch.add(part)
    return sketch.leading()


@pytest.mark.parametrize("columns", [None, D, D // 2])
def test_half_of_the_columns_and_more_are_exact(columns) -> None:
    x = rows()
    values, vectors = sketched(x, columns)
    R = D if columns is None else columns
    exact = torch.linalg.eigvalsh(x.T @ x).flip(0)[:R]
    torch.testing.assert_close(values, exact)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(R).double())
    torch.testing.assert_close(vectors.T @ (x.T @ x) @ vectors, values.diag(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("columns", [4, 10, 20])
def test_what_is_missed_is_about_what_the_best_of_its_rank_misses(columns) -> None:
    x = rows()
    G = x.T @ x
    values, vectors = sketched(x, columns)
    found = (vectors * values) @ vectors.T
    assert torch.linalg.eigvalsh(G - found).min() > -1e-8 * G.trace()
    best = torch.linalg.eigvalsh(G).flip(0)[columns:].sum()
    assert float((G - found).trace()) < 2 * float(best)
    assert float(values.sum()) > 0.9 * float(torch.linalg.eigvalsh(G).flip(0)[:columns].sum())


def test_batches_do_not_matter_and_neither_does_their_order() -> None:
    x = rows()
    values, vectors = sketched(x, 8)
    again, turned = sketched(x.flip(0), 8, cuts=(1,) * 7)
    torch.testing.assert_close(again, values)
    torch.testing.assert_close((turned * again) @ turned.T, (vectors * values) @ vectors.T)


@pytest.mark.parametrize("columns", [8, None])
def test_fewer_rows_than_columns_are_kept_whole(columns) -> None:
    x = rows(3)
    values, vectors = sketched(x, columns)
    torch.testing.assert_close((vectors * values) @ vectors.T, x.T @ x)
    assert not values[3:].gt(1e-9).any()
    nothing = sketched(rows(0), columns)
    assert not nothing[0].any() and nothing[0].shape == values.shape


def test_in_single_precision() -> None:
    x = rows(decay=3.0).float()
    values, vectors = sketched(x, 8)
    exact = torch.linalg.eigvalsh(x.double().T @ x.double()).flip(0)[:8]
    torch.testing.assert_close(values[:4], exact[:4], rtol=0, atol=1e-5 * exact[0])
    assert torch.isfinite(vectors).all()
