"""The Stiefel verbs against n × n formulas, singular values and geoopt."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch

from bayestune.errors import ConfigError, NumericsError
from bayestune.geometry import (
    canonical_gradient,
    check_point,
    landing_field,
    orthogonality_error,
    project_tangent,
    random_point,
    retract_polar,
    safe_step,
    step_polar,
)

with warnings.catch_warnings():
    # geoopt compiles a helper with torch.jit.script, which torch deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    geoopt = pytest.importorskip("geoopt")

F64 = torch.float64
SHAPES = [(1, 1), (7, 1), (5, 5), (12, 3), (40, 8)]


def draw(n, r, seed, off=0.0, lead=()):
    """Return points (off the manifold by about ``off``) and gradients, ``(*lead, n, r)``."""
    g = torch.Generator().manual_seed(seed)
    X = torch.linalg.qr(torch.randn(*lead, n, r, generator=g, dtype=F64))[0]
    X = X + off * torch.randn(*lead, n, r, generator=g, dtype=F64) / n**0.5
    return X, torch.randn(*lead, n, r, generator=g, dtype=F64)


def skew_field(X, G):
    """The n × n form of the canonical gradient."""
    return (G @ X.mT - X @ G.mT) @ X


def penalty_term(X):
    return X @ X.mT @ X - X


@pytest.mark.parametrize(("n", "r"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_cheap_fields_equal_the_n_by_n_forms(n, r, seed):
    X, G = draw(n, r, seed, off=0.4, lead=(2, 3))
    torch.testing.assert_close(canonical_gradient(X, G), skew_field(X, G), rtol=1e-6, atol=1e-12)
    expected = skew_field(X, G) + 0.3 * penalty_term(X)
    torch.testing.assert_close(landing_field(X, G, 0.3), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_two_terms_of_the_landing_field_are_orthogonal(seed):
    X, G = draw(30, 4, seed, off=0.5)
    towards = landing_field(X, torch.zeros_like(G), 1.0)
    along = landing_field(X, G, 0.0)
    torch.testing.assert_close(towards, penalty_term(X))
    assert towards.norm() > 0.1
    assert abs((along * towards).sum()) < 1e-12 * along.norm() * towards.norm()


def test_gradient_descent_on_the_landing_field_lands_monotonically():
    X, A = draw(30, 4, 0, off=0.25)
    assert 0.2 < orthogonality_error(X) < 0.4
    errors = []
    for _ in range(80):
        errors.append(orthogonality_error(X).item())
        X = X - 0.1 * landing_field(X, 0.02 * (X - A), 1.0)
    assert all(b < a for a, b in pairwise(errors))
    assert errors[-1] < 1e-2 * errors[0]


@pytest.mark.parametrize(("n", "r"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_projections_and_gradient_agree_with_geoopt(n, r, seed):
    X, G = draw(n, r, seed, lead=(2,))
    euclidean, canonical = geoopt.EuclideanStiefel(), geoopt.CanonicalStiefel()
    torch.testing.assert_close(project_tangent(X, G), euclidean.proju(X, G))
    torch.testing.assert_close(canonical_gradient(X, G), canonical.egrad2rgrad(X, G))
    torch.testing.assert_close(retract_polar(X + 0.3 * G), euclidean.projx(X + 0.3 * G))


@pytest.mark.parametrize("seed", range(3))
def test_canonical_gradient_represents_the_derivative_in_the_canonical_metric(seed):
    X, G = draw(20, 4, seed)
    V = project_tangent(X, draw(20, 4, seed + 100)[1])
    inner = geoopt.CanonicalStiefel().inner(X, canonical_gradient(X, G), V)
    torch.testing.assert_close(inner, (G * V).sum())


@pytest.mark.parametrize(("n", "r"), SHAPES)
def test_tangent_projection_is_the_orthogonal_one(n, r):
    X, Z = draw(n, r, 1, lead=(3,))
    V = project_tangent(X, Z)
    torch.testing.assert_close(X.mT @ V + V.mT @ X, torch.zeros(3, r, r, dtype=F64))
    torch.testing.assert_close(project_tangent(X, V), V)
    other = project_tangent(X, draw(n, r, 2, lead=(3,))[1])
    gap = ((Z - V) * other).sum((-2, -1))
    torch.testing.assert_close(gap, torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
def test_retraction_is_the_nearest_orthonormal_matrix_far_from_the_manifold(dtype, condition):
    g = torch.Generator().manual_seed(3)
    n, r = 60, 6
    U = torch.linalg.qr(torch.randn(n, r, generator=g, dtype=F64))[0]
    V = torch.linalg.qr(torch.randn(r, r, generator=g, dtype=F64))[0]
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), r, dtype=F64) * 50
    Z = ((U * values) @ V.mT).to(dtype)
    left, _, right = torch.linalg.svd(Z.double(), full_matrices=False)
    Q = retract_polar(Z)
    assert Q.dtype == dtype
    atol = 3e-7 if dtype == torch.float32 else 1e-5 * condition / 1e5 + 1e-12
    torch.testing.assert_close(Q.double(), left @ right, rtol=0, atol=atol)
    distance = torch.linalg.matrix_norm(Z.double() - Q.double())
    for seed in range(20):
        other = draw(n, r, seed)[0]
        assert distance <= torch.linalg.matrix_norm(Z.double() - other)


def test_retraction_of_bfloat16_computes_wider_and_keeps_the_type():
    Z = draw(64, 4, 0, off=0.5)[0].bfloat16()
    Q = retract_polar(Z)
    assert Q.dtype == torch.bfloat16
    assert torch.equal(Q, retract_polar(Z.double()).bfloat16())


def test_retraction_refuses_what_has_no_unique_nearest_point():
    Z = draw(10, 3, 0)[0]
    Z[:, 2] = Z[:, 0] + Z[:, 1]
    with pytest.raises(NumericsError, match="full column rank"):
        retract_polar(Z)
    Z[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        retract_polar(Z)
    with pytest.raises(NumericsError, match="full column rank"):
        retract_polar(torch.zeros(4, 10, 3))


@pytest.mark.parametrize("length", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize(("n", "r"), [(7, 1), (5, 5), (64, 16), (576, 8)])
def test_a_polar_step_is_the_retraction_of_the_sum(n, r, length):
    X, Z = draw(n, r, 4, lead=(3,))
    V = project_tangent(X, Z)
    V = V * length / torch.linalg.matrix_norm(V, 2).clamp_min(1e-300)[:, None, None]
    expected = retract_polar(X + V)
    torch.testing.assert_close(step_polar(X, V), expected, rtol=0, atol=1e-6)
    single = step_polar(X.float(), V.float())
    assert orthogonality_error(single).max() < 5e-6
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_polar_step_bears_one_direction_far_longer_than_the_rest(dtype):
    X, Z = draw(64, 16, 7)
    V = torch.zeros_like(X)
    V[:, 3] = Z[:, 0] - X @ (X.mT @ Z[:, 0])  # one singular value, tangent
    V = 10 * V / V.norm()
    moved = step_polar(X.to(dtype), V.to(dtype))
    torch.testing.assert_close(moved.double(), retract_polar(X + V), rtol=0, atol=2e-6)


def test_a_polar_step_is_a_retraction_of_second_order():
    X, Z = draw(20, 4, 5)
    V = project_tangent(X, Z) / 5
    exact = geoopt.EuclideanStiefel()
    gaps = [(step_polar(X, t * V) - exact.expmap(X, t * V)).norm().item() for t in (0.1, 0.05)]
    assert 6 < gaps[0] / gaps[1] < 10  # third order in t: 8


def test_a_polar_step_corrects_the_rounding_of_the_point():
    X, Z = draw(50, 4, 6)
    rough = X + 1e-3 * Z / 50**0.5
    assert orthogonality_error(rough) > 1e-4
    assert orthogonality_error(step_polar(rough, torch.zeros_like(X))) < 1e-12


def test_random_points_are_uniform_and_reproducible():
    n, r, count = 6, 2, 4000
    g = torch.Generator().manual_seed(0)
    X = torch.stack([random_point(n, r, generator=g, dtype=F64) for _ in range(count)])
    assert orthogonality_error(X).max() < 1e-12
    # Uniform: E x = 0, E x² = 1/n, E x⁴ = 3 / (n (n + 2)) for every entry.
    for power, mean in ((1, 0.0), (2, 1 / n), (4, 3 / (n * (n + 2)))):
        sample = X**power
        error = sample.std(0) / count**0.5
        assert ((sample.mean(0) - mean).abs() < 4 * error).all()
    again = random_point(n, r, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.equal(again, X[0])
    assert random_point(n, r).dtype == torch.float32


@pytest.mark.parametrize(("n", "r"), [(3, 4), (3, 0)])
def test_random_point_refuses_impossible_shapes(n, r):
    with pytest.raises(ConfigError, match="1 <= r <= n"):
        random_point(n, r)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("off", [0.0, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("push", [0.0, 1.0, 100.0])
def test_a_safe_step_stays_within_the_radius(seed, off, push):
    X, G = draw(25, 3, seed, lead=(8,))
    X = X * (1 + off * torch.rand(8, 1, 1, generator=torch.Generator().manual_seed(seed))) ** 0.5
    penalty, lr, radius = 0.7, 10.0, 0.5
    field = landing_field(X, push * G, penalty)
    eta = safe_step(X, field, penalty, lr, radius)
    before = orthogonality_error(X)
    after = orthogonality_error(X - eta[:, None, None] * field)
    assert eta.shape == (8,)
    assert ((eta >= 0) & (eta <= 1 / (2 * penalty))).all()
    assert (eta[before < 1] > 0).all()
    assert (eta[before >= 1] == 0).all()
    assert (after <= before.clamp_min(radius) + 1e-12).all()


def test_a_safe_step_solves_its_quadratic_and_leaves_small_steps_alone():
    X, G = draw(25, 3, 0, off=0.1, lead=(4,))
    penalty, radius = 1.0, 0.5
    field = landing_field(X, 100 * G, penalty)
    eta = safe_step(X, field, penalty, 1.0, radius)
    d, g2 = orthogonality_error(X), field.square().sum((-2, -1))
    bound = d - 2 * eta * penalty * d * (1 - d) + eta**2 * g2
    torch.testing.assert_close(bound, torch.full_like(bound, radius))
    assert torch.equal(safe_step(X, field, penalty, 1e-9), torch.full((4,), 1e-9, dtype=F64))
    still = safe_step(X[0], torch.zeros_like(X[0]), 0.0, 0.3)
    assert still.item() == 0.3


def test_check_point_gives_the_reason():
    X = draw(10, 3, 0, lead=(2,))[0]
    assert check_point(X) == (True, None)
    assert check_point(X[0].float())[0]
    X[1] *= 1.1
    ok, reason = check_point(X)
    assert not ok
    assert "0.364 is above 0.0001" in reason
    X[0, 0, 0] = float("nan")
    assert check_point(X)[0] is False
    assert "more columns than rows" in check_point(torch.eye(3)[:2])[1]
    assert "not a matrix" in check_point(torch.ones(3))[1]


def test_orthogonality_error_is_per_matrix():
    X = draw(10, 3, 0, off=0.3, lead=(2, 2))[0]
    expected = [(x.mT @ x - torch.eye(3, dtype=F64)).norm() for x in X.flatten(0, 1)]
    torch.testing.assert_close(orthogonality_error(X).flatten(), torch.stack(expected))
    assert orthogonality_error(X.bfloat16()).dtype == torch.float32


def test_no_function_needs_an_n_by_n_matrix():
    n, r = 200_000, 2  # n × n would be 160 GB
    g = torch.Generator().manual_seed(0)
    X, G = random_point(n, r, generator=g), torch.randn(n, r, generator=g)
    field = landing_field(X, G, 1.0)
    assert torch.isfinite(safe_step(X, field, 1.0, 0.1))
    assert orthogonality_error(step_polar(X, project_tangent(X, G))) < 1e-3
    assert orthogonality_error(retract_polar(X + G)) < 1e-3
    assert canonical_gradient(X, G).shape == (n, r)
