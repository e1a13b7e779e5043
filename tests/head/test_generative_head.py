from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import invgamma, multivariate_normal
from torch import Tensor, distributions

from bayestune.errors import ConfigError, ModelError, NumericsError, StoreError
from bayestune.head import GenerativeHead
from bayestune.optim import StiefelAdam, param_groups
from bayestune.posterior import classes, generative, projection

K, D, N = 3, 8, 240


def rows(n: int = N, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Three Gaussian classes in correlated features around a distant mean."""
    centres = 0.7 * torch.randn(K, D, generator=torch.Generator().manual_seed(7))
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(8))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (n,), generator=g)
    phi = centres[labels] + torch.randn(n, D, generator=g) @ mixing / D**0.5 + 20
    return scale * phi, labels


def started(**options) -> GenerativeHead:
    head = GenerativeHead(in_features=D, num_classes=K, **{"axes": 6, **options})
    head.start(*rows())
    return head


# what it says -------------------------------------------------------------------------------------


def test_it_starts_at_the_exact_posterior() -> None:
    head, (phi, labels) = started(), rows()
    x = projection.project(phi.double(), projection.measure(phi.double(), 6))
    fitted = classes.fit(
        classes.Statistics.of(x, labels, K), torch.tensor(1.0, dtype=torch.float64)
    )
    torch.testing.assert_close(head.means.double(), fitted.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.log_scale.exp().double(), fitted.scale, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.log_noise.exp().double(), fitted.noise, rtol=1e-4, atol=1e-6)
    counts = torch.bincount(labels, minlength=K)
    torch.testing.assert_close(head.log_class_prior.exp(), (counts + 1) / (N + K))


@pytest.mark.parametrize("axes", [3, D])
def test_density_and_predictive_are_scipys(axes) -> None:
    head, (phi, _) = started(axes=axes), rows(40, 1)
    c, V, s, rest = (part.double() for part in head.projection)
    off = rest * (torch.eye(D, dtype=torch.float64) - V @ V.T)
    density = []
    for k in range(K):
        variance = (2 * head.log_scale[k]).exp() + head.log_noise.exp()
        covariance = (V * s) @ torch.diag(variance.double().detach()) @ (V * s).T + off
        mean = c + (V * s) @ head.means[k].double().detach()
        normal = multivariate_normal(mean.numpy(), covariance.numpy())
        log_pi = float(head.log_class_prior[k])
        density.append(torch.from_numpy(normal.logpdf(phi.numpy())) + log_pi)
    joint = torch.stack(density, 1)
    with torch.no_grad():
        torch.testing.assert_close(head.log_density(phi), joint.logsumexp(1), rtol=1e-4, atol=1e-3)
        p = head.predictive(phi)
        torch.testing.assert_close(p.probs.double(), joint.softmax(1), rtol=0, atol=1e-4)
        torch.testing.assert_close(head.probs(phi).double(), joint.softmax(1), rtol=0, atol=1e-4)
        torch.testing.assert_close(head(phi).softmax(-1), p.probs, rtol=0, atol=1e-4)
    torch.testing.assert_close(p.entropy, p.aleatoric + p.epistemic)
    assert (p.epistemic > 0).all() and (p.aleatoric > 0).all()


def test_it_classifies_and_knows_a_stranger() -> None:
    head, (phi, labels) = started(), rows(300, 2)
    with torch.no_grad():
        assert float((head.probs(phi).argmax(1) == labels).double().mean()) > 0.7
        # Off the axes too, where a projected density would see nothing.
        off = torch.randn(300, D, generator=torch.Generator().manual_seed(3))
        off = 5 * (off - off @ head.directions @ head.directions.T)
        assert head.log_density(phi + off).median() < head.log_density(phi).quantile(0.01)


def test_information_falls_with_more_rows() -> None:
    phi = rows(200, 5)[0]
    amounts = []
    for n in (24, 96, 384):
        head = GenerativeHead(in_features=D, num_classes=K, axes=4)
        head.start(*rows(n))
        amounts.append(float(head.predictive(phi).epistemic.mean().detach()))
    assert amounts[0] > 1.5 * amounts[1] > 1.5**2 * amounts[2] > 0


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_the_scale_of_the_features_means_nothing(scale) -> None:
    head = GenerativeHead(in_features=D, num_classes=K, axes=6)
    head.start(*rows(scale=scale))
    probe = rows(50, 1)[0]
    torch.testing.assert_close(
        head.predictive(scale * probe).probs, started().predictive(probe).probs, rtol=0, atol=1e-3
    )


def test_absent_classes_have_probability_zero() -> None:
    head, (phi, _) = started(), rows(9, 1)
    mask = torch.tensor([True, False, True]).expand(9, K)
    p = head.predictive(phi, mask)
    assert torch.equal(p.probs[:, 1], torch.zeros(9))
    torch.testing.assert_close(p.probs.sum(1), torch.ones(9))
    assert torch.isfinite(p.epistemic).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    head, (phi, _) = started(), rows(7, 1)
    together = head.predictive(phi)
    for i in range(7):
        alone = head.predictive(phi[i : i + 1])
        torch.testing.assert_close(alone.epistemic[0], together.epistemic[i], rtol=1e-4, atol=1e-7)
    many = GenerativeHead(in_features=D, num_classes=K, axes=6)
    many.load_state_dict(head.state_dict())
    assert torch.equal(many.predictive(phi).epistemic, together.epistemic)


def test_draws_for_many_classes_stay_few() -> None:
    assert started()._samples() == 256
    assert GenerativeHead(in_features=64, num_classes=1000)._samples() == 32
    assert GenerativeHead(in_features=64, num_classes=300)._samples() == 64
    head = GenerativeHead(in_features=128, num_classes=1000)
    phi = torch.randn(2000, 128, generator=torch.Generator().manual_seed(0))
    head.start(phi, torch.arange(2000) % 1000)
    assert torch.isfinite(head.predictive(phi[:40]).epistemic).all()


# training -----------------------------------------------------------------------------------------


def test_kl_and_bound_train_it_towards_the_labels() -> None:
    """From the prior, by the optimiser of the training loop, with κ/N on the KL."""
    phi, labels = rows()
    head = GenerativeHead(in_features=D, num_classes=K, axes=6)
    head.start(phi, labels)
    with torch.no_grad():
        head.means.zero_()
    groups = param_groups(torch.nn.ModuleList([head]), lr=1.0, head_lr=0.03)
    assert {p for g in groups for p in g["params"]} == {head.means, head.log_scale, head.log_noise}
    optimiser = StiefelAdam(groups)
    losses = []
    for _ in range(200):
        loss = -head.bound(phi, labels).mean() + head.kl() / N
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]
    fresh, truth = rows(300, 2)
    assert float((head.probs(fresh).argmax(1) == truth).double().mean()) > 0.7


def test_bound_weighs_masks_and_reaches_the_features() -> None:
    head, (phi, labels) = started(), rows(6, 1)
    phi.requires_grad_()
    mask = torch.ones(6, K, dtype=torch.bool)
    weights = torch.linspace(0.5, 2, 6)
    x = projection.project(phi, head.projection)
    parts = head.means, head.log_scale.exp(), head.log_noise.exp(), head.log_class_prior
    expected = weights * generative.bound(x, labels, *parts)
    found = head.bound(phi, labels, mask, weights)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), phi)
    assert torch.isfinite(slope).all() and slope.abs().max() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head.bound(phi, labels, mask, weights), expected)


def test_kl_is_the_divergence_less_the_log_prior_of_the_noise() -> None:
    head = started(prior_scale=2.0)
    q = distributions.Normal(head.means, head.log_scale.exp())
    p = distributions.Normal(0.0, head.log_prior_variance.exp().sqrt())
    divergence = distributions.kl_divergence(q, p).sum().detach()

    def log_prior(noise: Tensor) -> float:
        return float(invgamma(0.5, scale=0.5).logpdf(noise.numpy()).sum())

    noise = head.log_noise.exp().detach()
    with torch.no_grad():
        before = head.kl()
        head.log_noise.add_(0.7)
        change = float(head.kl() - before)
    assert change == pytest.approx(log_prior(noise) - log_prior(noise * math.exp(0.7)), rel=1e-4)
    constant = 6 * float(invgamma(0.5, scale=0.5).logpdf(1.0) + 0.5)
    assert float(before) == pytest.approx(float(divergence) - log_prior(noise) + constant, rel=1e-5)


def test_update_prior_minimises_the_kl_when_asked() -> None:
    head = started(learn_prior=True)
    with torch.no_grad():
        head.means.mul_(2)
    head.update_prior()
    best, kl = head.log_prior_variance.clone(), head.kl()
    for shift in (-0.1, 0.1):
        head.log_prior_variance.copy_(best + shift)
        assert head.kl() > kl
    fixed = started(prior_scale=2.0)
    fixed.update_prior()
    assert math.isclose(fixed.log_prior_variance.exp(), 2.0, rel_tol=1e-6)


# temperature and storage --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_folding_is_what_was_searched(temperature) -> None:
    head, (phi, _) = started(), rows(20, 1)
    expected = head.probs(phi, temperature=temperature)
    plain = head(phi)
    head.fold_temperature(temperature)
    torch.testing.assert_close(head.probs(phi), expected)
    # Equal counts: all logits divided by T.
    balanced = GenerativeHead(in_features=D, num_classes=K, axes=6)
    inputs, _ = rows()
    balanced.start(inputs, torch.arange(N) % K)
    logits = balanced(phi)
    balanced.fold_temperature(temperature)
    torch.testing.assert_close(
        balanced(phi).softmax(1), (logits / temperature).softmax(1), rtol=0, atol=1e-5
    )
    assert not torch.allclose(plain.softmax(1).double(), expected)


def test_folding_leaves_the_density_of_the_features_alone() -> None:
    head, (phi, _) = started(axes=3), rows(50, 1)
    before = head.log_density(phi)
    head.fold_temperature(0.3)
    head.fold_temperature(0.5)
    torch.testing.assert_close(head.log_density(phi), before, rtol=1e-5, atol=1e-4)
    head.start(*rows())
    torch.testing.assert_close(head.log_density(phi), before, rtol=1e-5, atol=1e-4)


def test_it_stores_and_loads_itself_in_as_many_axes() -> None:
    head, (phi, _) = started(), rows(20, 1)
    head.fold_temperature(1.3)
    other = GenerativeHead(in_features=D, num_classes=K, axes=2)
    other.load_posterior(head.posterior_tensors())
    assert torch.equal(other.predictive(phi).probs, head.predictive(phi).probs)
    assert torch.equal(other.log_density(phi), head.log_density(phi))
    resumed = GenerativeHead(in_features=D, num_classes=K)
    resumed.load_state_dict(head.state_dict())
    assert torch.equal(resumed(phi), head(phi))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "scalar", "classes"])
def test_another_posterior_is_refused(change) -> None:
    head, tensors = started(), started().posterior_tensors()
    if change == "missing":
        del tensors["log_noise"]
    elif change == "unknown":
        tensors["more"] = torch.zeros(())
    elif change == "shape":
        tensors["directions"] = torch.zeros(D + 1, 6)
    elif change == "scalar":
        tensors["means"] = torch.zeros(())
    else:
        tensors["means"] = torch.zeros(K + 1, 6)
    before = head.means.clone()
    with pytest.raises(StoreError):
        head.load_posterior(tensors)
    assert torch.equal(head.means, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"axes": 0}, "axes"),
        ({"prior_scale": 0.0}, "prior_scale"),
    ],
)
def test_bad_arguments_are_errors(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerativeHead(**{"in_features": D, "num_classes": K, **options})


def test_bad_features_are_errors() -> None:
    head = GenerativeHead(in_features=D, num_classes=K)
    phi, labels = rows(20)
    phi[3, 2] = torch.nan
    with pytest.raises(NumericsError, match="NaN or infinite"):
        head.start(phi, labels)
    with pytest.raises(ModelError, match="built for 8"):
        head(torch.zeros(2, D + 1))
