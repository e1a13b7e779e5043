"""Laplace posteriors over adapter weights against dense linear algebra in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toy_sites import IN, RANK, Toy

from bayestune.posterior import curvature
from bayestune.weights.curvature import Factors, SiteCurvature, covariance, projected

SITES = ("A", "B", "head")
TAU = 0.7


def dense(factors: Factors) -> Tensor:
    """The curvature of a site, ``(out · in, out · in)``."""
    vectors = torch.einsum("pi,qj->pqij", factors.outputs, factors.inputs).flatten(0, 1).flatten(1)
    return (vectors * factors.values.flatten()) @ vectors.T


def fitted(toy: Toy, *names: str, columns: int = 99, **rows):
    weights = toy.laplace(*names, columns=columns)
    likelihood = weights.fit(toy, toy.head, toy.rows(**rows))
    weights.set_precisions(dict.fromkeys(names, TAU))
    return weights, likelihood


def moments(toy: Toy, weights, *factors: float):
    return weights.moments(toy, toy.head, toy.encoded, factors or (1.0,), 3)


# the softmax's curvature --------------------------------------------------------------------------


def test_its_root_squares_to_it_even_where_a_class_is_certain_or_absent() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double() * 4
    logits[0] = torch.tensor([0.0, 90.0, -30.0, 4.0, 1.0])
    logits[1, 2] = -1e30
    p = logits.softmax(-1)
    H = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    root = curvature.root(p)
    assert root.shape == (20, 5, 4)
    torch.testing.assert_close(root @ root.mT, H, rtol=1e-12, atol=1e-15)
    small = H[0].diagonal()[[0, 2, 3, 4]]  # not lost to rounding
    torch.testing.assert_close(
        (root @ root.mT)[0].diagonal()[[0, 2, 3, 4]], small, rtol=1e-9, atol=0
    )
    assert not root[1, 2].any()


# the factors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("positions", [1, 4])
def test_one_row_at_one_position_is_exact(positions, classes) -> None:
    toy = Toy(1, positions, classes)
    weights, _ = fitted(toy, *SITES)
    for name, G in toy.gauss_newton(*SITES).items():
        found = dense(weights.factors(name))
        torch.testing.assert_close(found.trace(), G.trace())
        if positions == 1 or name == "head":  # the head sees what was pooled
            torch.testing.assert_close(found, G)
        else:
            assert float((found - G).norm() / G.norm()) > 0.01


def test_a_linear_model_whose_rows_predict_alike_is_exact() -> None:
    toy = Toy(20, 3)
    with torch.no_grad():
        toy.head.weight.zero_()
    weights, likelihood = fitted(toy, "head")
    G = toy.gauss_newton("head")["head"]
    torch.testing.assert_close(dense(weights.factors("head")), G)
    assert likelihood == pytest.approx(-20 * math.log(3))


@pytest.mark.parametrize("positions", [1, 4])
def test_the_trace_is_exact_and_the_sum_is_over_rows(positions) -> None:
    toy = Toy(30, positions)
    for name, G in toy.gauss_newton(*SITES).items():
        weights, _ = fitted(toy, *SITES)
        torch.testing.assert_close(dense(weights.factors(name)).trace(), G.trace())


def test_it_is_nearer_than_expand_reduce_and_last_to_the_whole_curvature() -> None:
    """The three ways in use to treat positions that share weights, on the same derivatives."""
    toy = Toy(60, 6)
    with torch.no_grad():
        toy.head.weight.mul_(2)
    weights, _ = fitted(toy, "A")
    G = toy.gauss_newton("A")["A"]
    hidden: list[Tensor] = []
    handle = toy.A.register_forward_hook(lambda _, args, out: hidden.extend((args[0], out)))
    logits = toy.head(toy(toy.inputs))
    handle.remove()
    a, z = hidden
    roots = curvature.root(logits.detach().softmax(-1))
    g = torch.stack(  # (N, K - 1, T, out)
        [torch.autograd.grad(logits, z, c, retain_graph=True)[0] for c in roots.unbind(-1)], 1
    )
    ways = {
        "expand": (a[:, None], g[:, :, :, None]),
        "reduce": (a.mean(1)[:, None, None], g.sum(2)[:, :, None, None]),
        "last": (a[:, -1][:, None, None], g[:, :, -1][:, :, None, None]),
    }
    error = {"rows": float((dense(weights.factors("A")) - G).norm() / G.norm())}
    for name, (inputs, outputs) in ways.items():
        x, y = inputs.reshape(-1, IN), outputs.reshape(-1, RANK)
        one = torch.kron(y.T @ y, x.T @ x) / len(x)
        error[name] = float((one - G).norm() / G.norm())
    assert error["rows"] < 0.75 * min(error[name] for name in ways), error


@pytest.mark.parametrize("columns", [1, 3])
def test_few_columns_are_the_leading_ones(columns) -> None:
    g = torch.Generator().manual_seed(0)
    J = torch.randn(50, 3, 40, generator=g).double() * torch.arange(1, 41) ** -2.0
    found = {}
    for k in (columns, 40):
        site = SiteCurvature(J[0], k)
        site.add(J[:20])
        site.add(J[20:])
        found[k] = site.factors()
    assert found[columns].inputs.shape == (40, columns)
    assert found[columns].outputs.shape == (3, 3)
    exact = found[40].values[:, :columns]
    torch.testing.assert_close(found[columns].values, exact, rtol=0.1, atol=0)
    assert (found[columns].values <= exact).all()
    both = SiteCurvature(J[0].T.contiguous(), columns)
    both.add(J.mT)
    assert both.factors().outputs.shape == (40, columns)
    torch.testing.assert_close(both.factors().values.T, found[columns].values)


def test_without_rows_there_is_no_curvature() -> None:
    assert not SiteCurvature(torch.zeros(3, 4), 2).factors().values.any()


# the covariance of the logits ---------------------------------------------------------------------


@pytest.mark.parametrize("columns", [99, 2])
def test_it_is_that_of_dense_matrices(columns) -> None:
    toy = Toy(8, 4)
    weights, _ = fitted(toy, *SITES, columns=columns)
    logits, J = toy.jacobians(*SITES)
    for factor in (1.0, 20.0):
        expected = torch.zeros(8, 3, 3, dtype=torch.float64)
        for name in SITES:
            of = dense(weights.factors(name))
            inverse = torch.linalg.inv(of + factor * TAU * torch.eye(len(of)))
            expected += J[name].flatten(2) @ inverse @ J[name].flatten(2).mT
        (found,) = moments(toy, weights, factor)
        torch.testing.assert_close(found.covariance, expected)
        torch.testing.assert_close(found.mean, logits)
        torch.testing.assert_close(found.phi, toy(toy.inputs).detach())


def test_as_many_columns_as_there_are_is_the_whole() -> None:
    toy = Toy(8, 4)
    whole = moments(toy, fitted(toy, *SITES)[0])[0].covariance
    same = moments(toy, fitted(toy, *SITES, columns=max(IN, 6))[0])[0].covariance
    fewer = moments(toy, fitted(toy, *SITES, columns=1)[0])[0].covariance
    torch.testing.assert_close(same, whole)
    # Less curvature is more variance.
    assert torch.linalg.eigvalsh(fewer - whole).min() > -1e-12
    assert (fewer - whole).abs().max() > 1e-3


def test_a_model_linear_in_its_last_site_has_the_posterior_of_logistic_regression() -> None:
    toy = Toy(12, 2, classes=2)
    with torch.no_grad():
        toy.head.weight.zero_()
    weights, _ = fitted(toy, "head")
    phi = toy(toy.inputs).detach()
    # w = w_1 − w_0 has the prior N(0, 2/τ) and, at 0, the curvature Σ φφᵀ/4.
    S = torch.linalg.inv(phi.T @ phi / 4 + TAU / 2 * torch.eye(phi.shape[1]))
    V = moments(toy, weights)[0].covariance
    difference = V[:, 0, 0] + V[:, 1, 1] - 2 * V[:, 0, 1]
    torch.testing.assert_close(difference, torch.einsum("nd,de,ne->n", phi, S, phi))


@pytest.mark.parametrize("columns", [99, 1])
def test_it_is_a_point_until_it_is_fitted_and_the_prior_without_data(columns) -> None:
    toy = Toy(4, 2)
    assert not moments(toy, toy.laplace("A", "B"))[0].covariance.any()
    weights, likelihood = fitted(toy, "A", "B", weights=torch.zeros(4), columns=columns)
    assert likelihood == 0
    weights.set_precisions({"A": 2.0, "B": 4.0})
    J = {name: of.flatten(2) for name, of in toy.jacobians("A", "B")[1].items()}
    prior = J["A"] @ J["A"].mT / 2 + J["B"] @ J["B"].mT / 4
    torch.testing.assert_close(moments(toy, weights)[0].covariance, prior)


def test_batches_do_not_matter() -> None:
    toy = Toy(9, 3)
    weights, _ = fitted(toy, *SITES)
    other = toy.laplace(*SITES)
    other.fit(toy, toy.head, toy.rows(), batch_size=2)
    for name in SITES:
        torch.testing.assert_close(dense(weights.factors(name)), dense(other.factors(name)))


def test_what_the_curvature_does_not_see_keeps_the_prior() -> None:
    J = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    eye = torch.eye(5).double()
    known = Factors(torch.full((4, 2), 1e12).double(), torch.eye(4).double(), eye[:, :2])
    V = covariance(*projected(J, known), known, torch.tensor(0.5))
    seen = J[..., 2:].flatten(2)
    torch.testing.assert_close(V, 2 * seen @ seen.mT, rtol=1e-9, atol=1e-9)


# weights, masks, temperature ----------------------------------------------------------------------


def test_a_row_of_weight_two_is_two_rows() -> None:
    toy, twice = Toy(6, 3), Toy(6, 3)
    heavy = torch.ones(6)
    heavy[4] = 2
    twice.encoded.ids, twice.encoded.lengths = [0, 1, 2, 3, 4, 5, 4], [3] * 7
    twice.labels = torch.cat([toy.labels, toy.labels[4:5]])
    (a, weighted), (b, doubled) = fitted(toy, "A", weights=heavy), fitted(twice, "A")
    assert weighted == pytest.approx(doubled)
    torch.testing.assert_close(dense(a.factors("A")), dense(b.factors("A")))


def test_a_class_that_does_not_exist_takes_no_part() -> None:
    toy, fewer = Toy(6, 3), Toy(6, 3, classes=2)
    toy.labels = fewer.labels
    with torch.no_grad():
        fewer.head.weight.copy_(toy.head.weight[:2])
        for name in ("base", "A", "B"):
            getattr(fewer, name).load_state_dict(getattr(toy, name).state_dict())
    fewer.inputs = toy.inputs
    mask = torch.tensor([True, True, False]).expand(6, 3)
    (a, masked), (b, plain) = fitted(toy, "A", mask=mask), fitted(fewer, "A")
    assert masked == pytest.approx(plain)
    torch.testing.assert_close(dense(a.factors("A")), dense(b.factors("A")))


def test_a_temperature_folded_into_the_head_divides_all_logits() -> None:
    toy = Toy(6, 3)
    weights, _ = fitted(toy, *SITES)
    (before,) = moments(toy, weights)
    toy.head.fold_temperature(1.7)
    weights.fold_temperature(1.7)
    (after,) = moments(toy, weights)
    torch.testing.assert_close(after.mean, before.mean / 1.7)
    torch.testing.assert_close(after.covariance, before.covariance / 1.7**2)


# the evidence -------------------------------------------------------------------------------------


def test_it_has_the_determinants_and_the_distance_of_the_formula() -> None:
    toy = Toy(20, 3)
    weights = toy.laplace(*SITES)
    with torch.no_grad():
        toy.head.weight.add_(0.3)  # as training would: the prior's mean is where it started
    weights.fit(toy, toy.head, toy.rows())
    for group in (["A", "B"], ["head"]):
        for tau in (0.1, 3.0):
            expected = 0.0
            for name in group:
                G = dense(weights.factors(name))
                moved = weights.sites[name].weight.detach()
                if name == "head":
                    moved = torch.full_like(moved, 0.3)
                expected -= 0.5 * tau * moved.square().sum()
                expected -= 0.5 * torch.linalg.slogdet(torch.eye(len(G)) + G / tau).logabsdet
            assert weights.evidence(group, tau) == pytest.approx(float(expected), rel=1e-9)
        best = weights.best_precision(group)
        for wrong in (0.5, 0.9, 1.1, 2.0):
            assert weights.evidence(group, wrong * best) < weights.evidence(group, best)


def test_groups() -> None:
    weights = Toy(2, 1).laplace(*SITES)
    assert weights.groups("shared") == {"adapter": ["A", "B"], "head": ["head"]}


# another library ----------------------------------------------------------------------------------


def test_laplace_torch_says_the_same() -> None:
    library = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    toy = Toy(12, 2)
    with torch.no_grad():
        toy.head.weight.zero_()  # where both Kronecker products are exact
    weights, likelihood = fitted(toy, "head")
    phi = toy(toy.inputs).detach()
    torch.nn.Module.zero_grad(toy)
    linear = torch.nn.Linear(phi.shape[1], 3, bias=False, dtype=torch.float64)
    linear.load_state_dict({"weight": toy.head.weight})
    rows = torch.utils.data.TensorDataset(phi, toy.labels)
    other = library.KronLaplace(linear, "classification", prior_precision=TAU)
    other.fit(torch.utils.data.DataLoader(rows, batch_size=5))
    mean, var = other._glm_predictive_distribution(phi)
    (found,) = moments(toy, weights)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.covariance, var)
    evidence = likelihood + weights.evidence(["head"], TAU)
    assert evidence == pytest.approx(float(other.log_marginal_likelihood()))
