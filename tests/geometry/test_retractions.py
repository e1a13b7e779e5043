"""QR and Cayley steps against n × n formulas, geoopt and the geodesics of their metrics."""

from __future__ import annotations

import warnings

import pytest
import torch

from bayestune.geometry import (
    orthogonality_error,
    project_tangent,
    random_point,
    step_cayley,
    step_polar,
    step_qr,
)

with warnings.catch_warnings():
    # geoopt compiles a helper with torch.jit.script, which torch deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    geoopt = pytest.importorskip("geoopt")

F64 = torch.float64
SHAPES = [(1, 1), (7, 1), (5, 5), (12, 3), (40, 8)]


def draw(n, r, seed, length=1.0, lead=()):
    """Return points and tangent vectors of a spectral norm, ``(*lead, n, r)``, in float64."""
    g = torch.Generator().manual_seed(seed)
    X = torch.linalg.qr(torch.randn(*lead, n, r, generator=g, dtype=F64))[0]
    V = project_tangent(X, torch.randn(*lead, n, r, generator=g, dtype=F64))
    size = torch.linalg.matrix_norm(V, 2).clamp_min(1e-300)
    return X, V * length / size[..., None, None]


def skew(X, V):
    """The n × n skew matrix W with WX = V."""
    P = torch.eye(X.shape[-2], dtype=X.dtype) - 0.5 * X @ X.mT
    return P @ V @ X.mT - X @ V.mT @ P


def dense_cayley(X, V):
    W, eye = skew(X, V), torch.eye(X.shape[-2], dtype=X.dtype)
    return torch.linalg.solve(eye - 0.5 * W, (eye + 0.5 * W) @ X)


def canonical_geodesic(X, V):
    return torch.linalg.matrix_exp(skew(X, V)) @ X


@pytest.mark.parametrize("step", [step_qr, step_cayley])
@pytest.mark.parametrize("length", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize(("n", "r"), SHAPES)
def test_steps_stay_on_the_manifold(step, n, r, length):
    X, V = draw(n, r, 0, length, lead=(2, 3))
    assert orthogonality_error(step(X, V)).max() < 1e-11
    assert orthogonality_error(step(X.float(), V.float())).max() < 2e-5


@pytest.mark.parametrize("step", [step_qr, step_cayley])
@pytest.mark.parametrize(("n", "r"), [(7, 1), (5, 5), (40, 8)])
def test_steps_leave_along_the_tangent_vector(step, n, r):
    X, V = draw(n, r, 1)
    h = 1e-5
    slope = (step(X, h * V) - step(X, -h * V)) / (2 * h)
    torch.testing.assert_close(slope, V, rtol=0, atol=1e-8)
    assert torch.equal(step_cayley(X, 0 * V), X)
    torch.testing.assert_close(step_qr(X, 0 * V), X)


@pytest.mark.parametrize("length", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize(("n", "r"), SHAPES)
def test_qr_step_is_the_q_factor_with_a_positive_diagonal(n, r, length):
    X, V = draw(n, r, 2, length, lead=(3,))
    expected = geoopt.EuclideanStiefel().retr(X, V)
    torch.testing.assert_close(step_qr(X, V), expected, rtol=0, atol=1e-10)
    single = step_qr(X.float(), V.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize(("n", "r"), SHAPES)
def test_cayley_step_is_the_n_by_n_formula(n, r, length):
    X, V = draw(n, r, 3, length, lead=(3,))
    expected = dense_cayley(X, V)
    torch.testing.assert_close(step_cayley(X, V), expected, rtol=0, atol=1e-11)
    single = step_cayley(X.float(), V.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


def orders(step, geodesic, X, V):
    """Return by which factor the gap to a geodesic shrinks when the step is halved."""
    gaps = [(step(X, t * V) - geodesic(X, t * V)).norm() for t in (0.02, 0.01)]
    return (gaps[0] / gaps[1]).item()


def test_order_of_agreement_with_the_geodesics():
    X, V = draw(20, 4, 5)
    euclidean = geoopt.EuclideanStiefel().expmap
    # Halving the step shrinks the gap 4 times at first order, 8 times at second.
    assert orders(step_polar, euclidean, X, V) == pytest.approx(8, rel=0.1)
    assert orders(step_cayley, canonical_geodesic, X, V) == pytest.approx(8, rel=0.1)
    assert orders(step_qr, euclidean, X, V) == pytest.approx(4, rel=0.1)
    assert orders(step_qr, canonical_geodesic, X, V) == pytest.approx(4, rel=0.1)


def test_qr_corrects_the_rounding_of_the_point_and_cayley_keeps_it():
    X, V = draw(50, 4, 6, length=0.1)
    rough = X + 1e-4 * random_point(50, 4, dtype=F64)
    error = orthogonality_error(rough).item()
    assert error > 1e-5
    V = project_tangent(rough, V)
    assert orthogonality_error(step_qr(rough, V)) < 1e-12
    assert orthogonality_error(step_cayley(rough, V)).item() == pytest.approx(error, rel=0.1)


def test_polar_and_cayley_turn_with_the_columns_and_qr_does_not():
    X, V = draw(30, 5, 7)
    Q = random_point(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    for step in (step_polar, step_cayley):
        torch.testing.assert_close(step(X @ Q, V @ Q), step(X, V) @ Q)
    assert (step_qr(X @ Q, V @ Q) - step_qr(X, V) @ Q).norm() > 0.1


@pytest.mark.parametrize("step", [step_polar, step_qr, step_cayley])
def test_some_rows_step_as_all_do_given_the_total(step):
    X, V = draw(30, 5, 8, length=0.5)
    rest = torch.cat([X, V], -1)[11:] if step is step_cayley else (X + V)[11:]
    some = step(X[:11], V[:11], total=lambda S: S + rest.mT @ rest)
    torch.testing.assert_close(some, step(X, V)[:11])


def test_no_step_needs_an_n_by_n_matrix():
    n, r = 200_000, 2  # n × n would be 160 GB
    g = torch.Generator().manual_seed(0)
    X = random_point(n, r, generator=g)
    V = project_tangent(X, torch.randn(n, r, generator=g)) / n**0.5
    for step in (step_qr, step_cayley):
        assert orthogonality_error(step(X, V)) < 1e-3
