from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.posterior import Predictive
from bayestune.posterior.quadrature import expected_softmax

METHODS = ("sample", "exact", "probit", "laplace_bridge")
methods = pytest.mark.parametrize("method", METHODS)
# The Laplace bridge does not tend to softmax(μ) for more than two classes.
converging = pytest.mark.parametrize("method", ["sample", "exact", "probit"])


def problem(B: int, K: int, variance: float, seed: int = 0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    mu = 2 * torch.randn(B, K, generator=g, dtype=dtype)
    return mu, variance * 2 * torch.rand(B, K, generator=g, dtype=dtype)


def check(p: Predictive, K: int) -> None:
    for field in (p.probs, p.entropy, p.aleatoric, p.epistemic):
        assert torch.isfinite(field).all()
    assert (p.probs >= 0).all()
    assert (p.probs.sum(-1) - 1).abs().max() < 1e-6
    assert (p.epistemic >= 0).all()
    assert (p.aleatoric >= 0).all()
    assert (p.epistemic <= p.entropy).all()
    assert (p.entropy <= math.log(K) + 1e-5).all()
    assert torch.equal(p.entropy, p.aleatoric + p.epistemic)
    torch.testing.assert_close(p.entropy, torch.special.entr(p.probs).sum(-1), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    K=st.integers(2, 1000),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    variance=st.sampled_from([0.0, 1e-8, 0.3, 5.0, 100.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_any_moments_give_a_distribution_and_a_split(K, scale, variance, seed):
    mu, var = problem(2, K, variance, seed, torch.float32)
    for method in METHODS:
        check(Predictive.from_moments(scale * mu, var, method=method), K)
    check(Predictive.from_point(scale * mu), K)
    check(Predictive.from_samples(torch.stack([scale * mu, mu])), K)


@converging
@pytest.mark.parametrize("K", [2, 5, 77])
def test_without_variance_it_is_softmax_and_nothing_epistemic(K, method):
    mu, var = problem(6, K, 0.0)
    p = Predictive.from_moments(mu, var, method=method)
    tolerance = 1e-12 if method == "probit" else 1e-6
    torch.testing.assert_close(p.probs, mu.softmax(-1), rtol=0, atol=tolerance)
    assert p.epistemic.max() < 1e-6
    little = Predictive.from_moments(mu, var + 1e-4, method=method)
    assert little.epistemic.max() < 1e-4
    assert (little.epistemic > 1e-9).all()


@pytest.mark.parametrize("method", ["sample", "exact"])
@pytest.mark.parametrize("variance", [0.5, 2.0, 12.0, 100.0])
def test_against_a_million_draws(method, variance):
    mu, var = problem(1, 5, variance)
    g = torch.Generator().manual_seed(3)
    z = mu + var.sqrt() * torch.randn(10**6, 1, 5, generator=g, dtype=mu.dtype)
    expected = Predictive.from_samples(z)
    p = Predictive.from_moments(mu, var, method=method)
    slack = 0.008 if method == "sample" else 0.0
    assert (p.probs - expected.probs).abs().max() < 0.0015 + slack
    assert (p.epistemic - expected.epistemic).abs().max() < 0.002 + slack


@pytest.mark.parametrize(
    ("K", "p_limit", "mi_limit"),
    [(2, 1e-3, 2e-3), (5, 2e-3, 3e-3), (77, 8e-3, 3e-2), (150, 1e-2, 5e-2)],
)
def test_the_fixed_draws_are_far_better_than_random_ones(K, p_limit, mi_limit):
    mu, var = problem(40, K, 2.0)
    exact = Predictive.from_moments(mu, var, method="exact")
    sampled = Predictive.from_moments(mu, var, method="sample")
    p_error = (sampled.probs - exact.probs).square().sum(-1).mean().sqrt()
    mi_error = (sampled.epistemic - exact.epistemic).square().mean().sqrt()
    assert p_error < p_limit
    assert mi_error < mi_limit
    S = {2: 1024, 5: 1024, 77: 256, 150: 128}[K]
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(S, 1, K, generator=g, dtype=mu.dtype)
    random = Predictive.from_samples(mu + var.sqrt() * noise)
    assert p_error < 0.5 * (random.probs - exact.probs).square().sum(-1).mean().sqrt()


def test_more_samples_and_another_seed():
    mu, var = problem(4, 5, 2.0)
    exact = Predictive.from_moments(mu, var, method="exact")
    errors = []
    for samples in (16, 128, 4096):
        p = Predictive.from_moments(mu, var, samples=samples)
        errors.append(float((p.probs - exact.probs).abs().max()))
    assert errors[2] < errors[1] < errors[0]
    other = Predictive.from_moments(mu, var, seed=1)
    assert not torch.equal(other.probs, Predictive.from_moments(mu, var).probs)
    assert (other.probs - exact.probs).abs().max() < 5e-3


@methods
@pytest.mark.parametrize("K", [2, 6])
def test_a_row_does_not_depend_on_its_batch(K, method):
    mu, var = problem(33, K, 3.0, dtype=torch.float32)
    many = Predictive.from_moments(mu, var, method=method)
    for b in (0, 17, 32):
        one = Predictive.from_moments(mu[b : b + 1], var[b : b + 1], method=method)
        torch.testing.assert_close(one.probs[0], many.probs[b], rtol=0, atol=1e-6)
        torch.testing.assert_close(one.epistemic[0], many.epistemic[b], rtol=0, atol=1e-6)


def test_rows_beyond_one_chunk_are_all_predicted():
    mu, var = problem(1, 150, 3.0, dtype=torch.float32)
    p = Predictive.from_moments(mu.expand(40, 150), var.expand(40, 150))
    assert (p.probs - p.probs[0]).abs().max() < 1e-6
    assert len(p.epistemic) == 40


@methods
def test_renaming_the_classes_only_renames_them(method):
    mu, var = problem(7, 9, 3.0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    p = Predictive.from_moments(mu, var, method=method)
    q = Predictive.from_moments(mu[:, order], var[:, order], method=method)
    torch.testing.assert_close(q.probs, p.probs[:, order])
    torch.testing.assert_close(q.epistemic, p.epistemic)


@methods
@pytest.mark.parametrize("K", [2, 9])
def test_a_common_shift_changes_nothing(K, method):
    mu, var = problem(7, K, 3.0)
    p = Predictive.from_moments(mu, var, method=method)
    q = Predictive.from_moments(mu + 123.0, var, method=method)
    torch.testing.assert_close(q.probs, p.probs)
    torch.testing.assert_close(q.epistemic, p.epistemic)


@methods
def test_masked_classes_do_not_exist(method):
    mu, var = problem(6, 5, 2.0)
    mu[:, 4] = 50.0  # would win
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:, 4] = False
    mask[3, 2] = False
    p = Predictive.from_moments(mu, var, method=method, mask=mask)
    check(p, 5)
    assert (p.probs[~mask] == 0).all()
    whole = [0, 1, 2, 4, 5]
    few = Predictive.from_moments(mu[whole, :4], var[whole, :4], method=method)
    tolerance = 5e-3 if method == "sample" else 1e-6
    torch.testing.assert_close(p.probs[whole, :4], few.probs, rtol=0, atol=tolerance)
    torch.testing.assert_close(p.epistemic[whole], few.epistemic, rtol=0, atol=tolerance)
    kept = [0, 1, 3]
    third = Predictive.from_moments(mu[3:4, kept], var[3:4, kept], method=method)
    torch.testing.assert_close(p.probs[3:4, kept], third.probs, rtol=0, atol=tolerance)


def test_masked_classes_do_not_exist_for_points_and_samples():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8, 3, 5, generator=g, dtype=torch.float64)
    mask = torch.tensor([True, True, False, True, False]).expand(3, 5)
    few = Predictive.from_samples(z[..., [0, 1, 3]])
    p = Predictive.from_samples(z, mask)
    assert (p.probs[~mask] == 0).all()
    torch.testing.assert_close(p.probs[:, [0, 1, 3]], few.probs)
    torch.testing.assert_close(p.epistemic, few.epistemic)
    point = Predictive.from_point(z[0], mask)
    assert (point.probs[~mask] == 0).all()
    torch.testing.assert_close(point.entropy, Predictive.from_point(z[0][:, [0, 1, 3]]).entropy)


def test_one_remaining_class_is_certain():
    mu, var = problem(2, 4, 3.0)
    mask = torch.tensor([False, True, False, False]).expand(2, 4)
    for method in METHODS:
        p = Predictive.from_moments(mu, var, method=method, mask=mask)
        torch.testing.assert_close(p.probs[:, 1], torch.ones(2, dtype=torch.float64))
        assert p.entropy.max() < 1e-6


@converging
def test_extreme_moments(method):
    big = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [0.0, 0.0, 0.0], [3e4, 1e4, 2e4]])
    for v in (0.0, 1.0, 1e4):
        p = Predictive.from_moments(big, torch.full_like(big, v), method=method)
        check(p, 3)
        torch.testing.assert_close(p.probs[1, :2], torch.full((2,), 0.5), rtol=0, atol=1e-2)
        torch.testing.assert_close(p.probs[2], torch.full((3,), 1 / 3), rtol=0, atol=1e-2)
    assert p.probs[0, 0] > 0.999
    assert p.epistemic[2] > 0.3


def test_the_variances_of_single_classes_matter_to_the_exact_method():
    mu = torch.zeros(1, 3, dtype=torch.float64)
    p = Predictive.from_moments(mu, torch.tensor([[9.0, 0.0, 0.0]]).double(), method="exact")
    # A class whose logit swings wins or loses, so it gets less than a third from losing to two.
    g = torch.Generator().manual_seed(1)
    swing = 3 * torch.randn(10**6, generator=g, dtype=torch.float64)
    draws = swing.exp() / (swing.exp() + 2)
    assert abs(p.probs[0, 0] - draws.mean()) < 4 * draws.std() / 1e3


def test_two_classes_take_the_difference_and_the_race_agrees():
    mu, var = problem(10, 2, 3.0)
    p = Predictive.from_moments(mu, var, method="exact")
    q, aleatoric = expected_softmax(mu, var)
    torch.testing.assert_close(p.probs, q, rtol=0, atol=1e-6)
    torch.testing.assert_close(p.aleatoric, aleatoric, rtol=0, atol=2e-6)


def test_by_default_two_classes_are_exact_and_more_are_sampled():
    for K, method in ((2, "exact"), (3, "sample")):
        mu, var = problem(5, K, 3.0)
        p = Predictive.from_moments(mu, var)
        assert torch.equal(p.probs, Predictive.from_moments(mu, var, method=method).probs)
    mu, var = problem(5, 2, 3.0)
    asked = Predictive.from_moments(mu, var, samples=64)
    sampled = Predictive.from_moments(mu, var, method="sample", samples=64)
    assert torch.equal(asked.probs, sampled.probs)


def test_from_samples_averages_probabilities_and_splits_their_entropy():
    z = torch.tensor([[[100.0, 0.0], [0.0, 0.0]], [[0.0, 100.0], [0.0, 0.0]]], dtype=torch.float64)
    p = Predictive.from_samples(z)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    torch.testing.assert_close(p.probs, half)
    torch.testing.assert_close(p.epistemic, torch.tensor([math.log(2), 0.0]).double())
    torch.testing.assert_close(p.aleatoric, torch.tensor([0.0, math.log(2)]).double())


def test_from_point_has_exactly_no_epistemic_uncertainty():
    p = Predictive.from_point(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(p.epistemic, torch.zeros(4))
    assert torch.equal(p.entropy, p.aleatoric)


def test_half_precision_is_widened():
    mu, var = problem(3, 4, 1.0, dtype=torch.float32)
    p = Predictive.from_moments(mu.bfloat16(), var.bfloat16())
    assert p.probs.dtype == torch.float32
    check(p, 4)


@methods
@pytest.mark.parametrize("K", [2, 6])
def test_mixed_precision_around_it_changes_nothing(K, method):
    mu, var = problem(3, K, 3.0, dtype=torch.float32)
    expected = Predictive.from_moments(mu, var, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = Predictive.from_moments(mu, var, method=method)
    assert torch.equal(p.probs, expected.probs)
    assert torch.equal(p.epistemic, expected.epistemic)


def test_concatenate_restores_the_batch():
    mu, var = problem(7, 3, 1.0)
    p = Predictive.from_moments(mu, var, method="exact")
    parts = [
        Predictive.from_moments(mu[i : i + 3], var[i : i + 3], method="exact") for i in (0, 3, 6)
    ]
    joined = Predictive.concatenate(parts)
    torch.testing.assert_close(joined.probs, p.probs)
    torch.testing.assert_close(joined.epistemic, p.epistemic)


def test_predictions_can_be_trained_after_inference_mode():
    mu, var = problem(2, 3, 1.0)
    with torch.inference_mode():
        Predictive.from_moments(mu, var, samples=8, seed=123)
    for method in METHODS:
        m, v = mu.clone().requires_grad_(), var.clone().requires_grad_()
        p = Predictive.from_moments(m, v, method=method, samples=8, seed=123)
        p.probs[:, 0].log().sum().backward()
        assert torch.isfinite(m.grad).all()
        assert torch.isfinite(v.grad).all()
        assert v.grad.abs().max() > 0


def test_an_empty_batch():
    empty = torch.zeros(0, 4)
    for method in METHODS:
        assert Predictive.from_moments(empty, empty, method=method).probs.shape == (0, 4)


def test_bad_input_is_an_error_that_says_so():
    mu, var = problem(2, 3, 1.0)
    with pytest.raises(ConfigError, match="Did you mean 'sample'"):
        Predictive.from_moments(mu, var, method="smaple")
    with pytest.raises(DataError, match=r"\(2, 3\) and their variances \(2, 2\)"):
        Predictive.from_moments(mu, var[:, :2])
    with pytest.raises(NumericsError, match="negative"):
        Predictive.from_moments(mu, -var)
    bad = mu.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="logit mean is NaN"):
        Predictive.from_moments(bad, var)
    with pytest.raises(NumericsError, match="logit is NaN"):
        Predictive.from_point(bad)
    mask = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(DataError, match="row 1"):
        Predictive.from_point(mu, mask)
    with pytest.raises(DataError, match="row 1"):
        Predictive.from_moments(mu, var, mask=mask)
