from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from bayestune.errors import ConfigError, ModelError, NumericsError, StoreError
from bayestune.head import GaussianHead
from bayestune.head.families import FAMILIES, TRAINED
from bayestune.posterior import Predictive, bounds, curvature, laplace

K, D, B = 3, 5, 8


def features(n: int = B, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, D, generator=g, dtype=torch.float64)


def trained(family: str = "diagonal", **options) -> GaussianHead:
    """A head with arbitrary means and spreads, in float64."""
    g = torch.Generator().manual_seed(1)
    head = GaussianHead(in_features=D, num_classes=K, feature_energy=7.0, **options).double()
    shapes = FAMILIES[family].shapes(K, D, 2)
    tensors = {n: torch.randn(s, generator=g, dtype=torch.float64) / 2 for n, s in shapes.items()}
    for name in tensors.keys() & {"basis", "classes"}:
        tensors[name] = torch.linalg.qr(tensors[name])[0]
    with torch.no_grad():
        head.weight.copy_(torch.randn(K, D, generator=g, dtype=torch.float64))
    head.set_spread(family, **tensors)
    return head


def covariance(head: GaussianHead) -> torch.Tensor:
    """The covariance of all weights (K·D, K·D), by the definition of the family."""
    spread = head.spread
    if head.family == "joint":
        return spread @ spread.T
    if head.family == "coupled":
        basis = torch.kron(spread.classes, spread.features)
        return basis @ spread.scale.flatten().square().diag() @ basis.T
    if head.family == "diagonal":
        blocks = torch.diag_embed(spread**2)
    elif head.family == "low_rank":
        blocks = torch.diag_embed(spread.scale**2) + spread.factor @ spread.factor.mT
    elif head.family == "kronecker":
        blocks = spread.classes.square()[:, None, None] * (spread.factor @ spread.factor.T)
    elif head.family == "eigen":
        blocks = spread.features @ torch.diag_embed(spread.scale**2) @ spread.features.T
    elif head.family == "subspace":
        V = spread.basis
        inside = V @ spread.factor @ spread.factor.mT @ V.T
        blocks = inside + spread.rest**2 * (torch.eye(D) - V @ V.T)
    else:
        blocks = spread @ spread.mT
    return torch.block_diag(*blocks)


families = pytest.mark.parametrize("family", list(FAMILIES))


@pytest.mark.parametrize("num_classes", [2, 3, 150])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_scales_mean_the_same_whatever_the_features(num_classes, scale):
    h = features(4000, scale)
    head = GaussianHead(in_features=D, num_classes=num_classes, prior_scale=3.0, init_scale=0.2)
    head.set_feature_energy(h)
    energy = h.square().sum(-1).mean()
    torch.testing.assert_close(head.feature_energy.double(), energy, rtol=1e-6, atol=0)
    _, initial = head.moments(h)
    assert math.isclose(initial.mean().detach(), 0.2**2, rel_tol=1e-5)
    prior = head.log_prior_variance.exp() * energy
    assert math.isclose(prior, 2 * 3.0 * max(1, math.log(num_classes)), rel_tol=1e-5)
    factor = head.lr_factors()
    assert factor["log_scale"] == 1.0
    # A step of one learning rate on unit features moves the logits as the scaled one does here.
    unit = h * (D / energy).sqrt()
    step = torch.full((D,), 0.01, dtype=torch.float64)
    torch.testing.assert_close(h @ step * factor["weight"], unit @ step, rtol=1e-6, atol=1e-9)


def test_a_new_head_predicts_nothing_yet():
    head = GaussianHead(in_features=D, num_classes=K, feature_energy=5.0)
    assert torch.equal(head(features()), torch.zeros(B, K))
    p = Predictive.from_moments(*head.moments(features()), method="exact")
    torch.testing.assert_close(p.probs, torch.full((B, K), 1 / 3), atol=1e-5, rtol=0)


def test_pretrained_rows_are_start_and_centre():
    rows = torch.randn(K, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    head = GaussianHead(
        in_features=D, num_classes=K, prior="pretrained", rows=rows, feature_energy=5.0
    )
    assert torch.equal(head.weight, rows.float())
    assert torch.equal(head.prior_mean, rows.float())
    assert head.weight.data_ptr() != head.prior_mean.data_ptr()
    plain = GaussianHead(in_features=D, num_classes=K, feature_energy=5.0)
    torch.testing.assert_close(head.kl(), plain.kl())  # the distance to the centre is zero in both


@families
def test_kl_equals_torch_distributions(family):
    head = trained(family, prior="pretrained", rows=torch.ones(K, D))
    q = distributions.MultivariateNormal(head.weight.flatten(), covariance(head))
    P = head.log_prior_variance.exp() * torch.eye(K * D, dtype=torch.float64)
    p = distributions.MultivariateNormal(head.prior_mean.flatten(), P)
    torch.testing.assert_close(head.kl(), distributions.kl_divergence(q, p))


@families
def test_moments_are_those_of_the_explicit_gaussian(family):
    head, h = trained(family), features()
    mu, var = head.moments(h)
    torch.testing.assert_close(mu, head(h))
    S = covariance(head).view(K, D, K, D)
    expected = torch.einsum("bi,kilj,bj->bkl", h, S, h)
    if not FAMILIES[family].correlated:
        expected = expected.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(var, expected)


def test_coupled_classes_come_with_a_refresh_and_are_not_trained():
    head, h = trained("coupled"), features()
    with pytest.raises(ModelError, match="couples the classes"):
        head.bound(h, torch.zeros(B, dtype=torch.long))
    with pytest.raises(ConfigError, match="Unknown covariance 'joint'"):
        GaussianHead(in_features=D, num_classes=K, covariance="joint")


def test_bound_is_jensen_with_mask_and_weights():
    head, h = trained(), features()
    labels = torch.arange(B) % 2
    mask = torch.tensor([True, True, False]).expand(B, K)
    weights = torch.linspace(0.5, 2, B, dtype=torch.float64)
    expected = weights * bounds.jensen(*head.moments(h), labels, mask)
    torch.testing.assert_close(head.bound(h, labels, mask, weights), expected)
    torch.testing.assert_close(head.bound(h, labels), bounds.jensen(*head.moments(h), labels))


def test_sequence_features_work_as_in_a_stock_forward():
    head, h = trained(), features(6).reshape(2, 3, D)
    assert head(h).shape == (2, 3, K)
    torch.testing.assert_close(head.moments(h)[1].reshape(6, K), head.moments(h.reshape(6, D))[1])


def test_everything_stays_in_full_precision_under_autocast():
    head = trained().float()
    h = features().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, var = head.moments(h)
        logits, kl = head(h), head.kl()
    assert {t.dtype for t in (mu, var, logits, kl)} == {torch.float32}
    torch.testing.assert_close(logits, h @ head.weight.T)
    assert head(h.bfloat16()).dtype == torch.float32


@families
@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_fold_temperature_is_exact(family, temperature):
    head, h = trained(family, prior="pretrained", rows=torch.ones(K, D)), features()
    mu, var = head.moments(h)
    kl = head.kl()
    prior = head.prior_mean / head.log_prior_variance.mul(0.5).exp()
    tempered = Predictive.from_moments(mu / temperature, var / temperature**2)
    head.fold_temperature(temperature)
    folded = Predictive.from_moments(*head.moments(h))
    torch.testing.assert_close(folded.probs, tempered.probs, rtol=0, atol=1e-13)
    torch.testing.assert_close(folded.epistemic, tempered.epistemic, rtol=0, atol=1e-13)
    torch.testing.assert_close(head.kl(), kl)
    torch.testing.assert_close(head.prior_mean / head.log_prior_variance.mul(0.5).exp(), prior)


@families
def test_update_prior_maximises_the_elbo_when_asked(family):
    head = trained(family, learn_prior=True)
    head.update_prior()
    best, kl = head.log_prior_variance.clone(), head.kl()
    for shift in (-0.1, 0.1):
        head.log_prior_variance.copy_(best + shift)
        assert head.kl() > kl
    fixed = trained(family)
    before = fixed.log_prior_variance.clone()
    fixed.update_prior()
    assert torch.equal(fixed.log_prior_variance, before)


def test_a_laplace_refresh_replaces_the_covariance():
    head, h = trained(), features(40)
    own = curvature.bernoulli(head(h).softmax(-1).detach())
    tau = float(1 / head.log_prior_variance.exp())
    form = laplace.Block.of(h, own)
    head.set_spread("dense", factor=form.spread(tau))
    assert head.family == "dense"
    torch.testing.assert_close(head.moments(h)[1], form.variance(h, tau))
    inverse = torch.linalg.inv(curvature.block(h, own) + tau * torch.eye(D))
    marginal = inverse.diagonal(dim1=1, dim2=2).sqrt()
    head.set_spread("diagonal", log_scale=marginal.log())
    assert head.family == "diagonal"
    torch.testing.assert_close(head.moments(h)[1], h**2 @ (marginal**2).T)


@families
def test_stored_tensors_restore_the_posterior(family):
    head, h = trained(family, prior="pretrained", rows=torch.ones(K, D)), features()
    head.fold_temperature(1.7)
    stored = {name: t.clone() for name, t in head.posterior_tensors().items()}
    assert "weight" not in stored
    assert all(t.is_contiguous() for t in stored.values())
    # The receiving head may have had another family.
    other = trained("dense" if family == "diagonal" else "diagonal")
    other.load_posterior(stored)
    with torch.no_grad():
        other.weight.copy_(head.weight)
    assert other.family == family
    for ours, theirs in zip(head.moments(h), other.moments(h), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(head.kl(), other.kl())
    assert head.lr_factors() == other.lr_factors()


def test_a_damaged_posterior_is_refused_and_nothing_changes():
    head = trained()
    stored = {name: t.clone() for name, t in head.posterior_tensors().items()}
    before = head.kl().detach().clone()
    missing = {n: t for n, t in stored.items() if n != "log_scale"}
    with pytest.raises(StoreError, match="log_scale"):
        head.load_posterior(missing)
    with pytest.raises(StoreError, match=r"shape \(2, 5\)"):
        head.load_posterior(
            {**stored, "log_scale": stored["log_scale"][:2], "feature_energy": torch.tensor(1.0)}
        )
    with pytest.raises(StoreError, match="factor"):
        head.set_spread("dense", factor=torch.eye(D))
    assert torch.equal(head.kl(), before)


def test_training_before_the_energy_is_known_is_an_error():
    head = GaussianHead(in_features=D, num_classes=K)
    for call in (head.kl, head.lr_factors):
        with pytest.raises(ModelError, match="set_feature_energy"):
            call()


@pytest.mark.parametrize("energy", [0.0, -1.0, math.nan, math.inf, torch.zeros(4, D)])
def test_an_impossible_energy_is_an_error(energy):
    head = GaussianHead(in_features=D, num_classes=K)
    with pytest.raises(NumericsError, match="energy"):
        head.set_feature_energy(energy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "pretraind"}, "Did you mean 'pretrained'"),
        ({"prior": "pretrained"}, "none were given"),
        ({"rows": torch.zeros(K, D)}, "rows were given"),
        ({"prior": "pretrained", "rows": torch.zeros(D, K)}, "shape"),
        ({"prior_scale": 0.0}, "prior_scale"),
        ({"init_scale": math.nan}, "init_scale"),
        ({"num_classes": 0}, "at least 1 of each"),
    ],
)
def test_bad_arguments_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        GaussianHead(**{"in_features": D, "num_classes": K, **options})


def test_misuse_is_an_error_that_says_what_to_do():
    head = trained()
    with pytest.raises(ConfigError, match="temperature"):
        head.fold_temperature(0.0)
    with pytest.raises(ModelError, match="6 dimensions"):
        head(torch.zeros(2, 6))
    with pytest.raises(ModelError, match=r"head\.float"):
        head.bfloat16()(torch.zeros(2, D))


def test_gradients_reach_mean_scale_and_features():
    head = GaussianHead(in_features=D, num_classes=K, feature_energy=5.0)
    h = features().float().requires_grad_()
    labels = torch.arange(B) % K
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
    (head.kl() / 100 - head.bound(h, labels).mean()).backward()
    for tensor in (head.weight, head.log_scale, h):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().max() > 0


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_training_is_the_same_on_any_feature_scale(scale):
    """Adam with the stated factors: the same logits whatever unit the features come in."""
    h = features(64).float()
    labels = (h[:, 0] > 0).long() + (h[:, 1] > 1).long()
    results = []
    for unit in (1.0, scale):
        head = GaussianHead(in_features=D, num_classes=K)
        head.set_feature_energy(unit * h)
        factors = head.lr_factors()
        groups = [
            {"params": [p], "lr": 0.05 * factors[name]} for name, p in head.named_parameters()
        ]
        solver = torch.optim.Adam(groups, eps=1e-30)
        for _ in range(30):
            solver.zero_grad()
            (head.kl() / 64 - head.bound(unit * h, labels).mean()).backward()
            solver.step()
        results.append(torch.stack(head.moments(unit * h)))
    assert results[0][0].abs().max() > 0.5
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", TRAINED)
def test_every_family_starts_alike_and_can_be_trained(family):
    h = features(400).float()
    head = GaussianHead(in_features=D, num_classes=K, covariance=family)
    head.set_feature_energy(h)
    _, var = head.moments(h)
    assert math.isclose(float(var.detach().mean()), 0.25, rel_tol=0.03)
    labels = torch.randint(K, (400,), generator=torch.Generator().manual_seed(0))
    factors = head.lr_factors()
    named = dict(head.named_parameters())
    assert factors.keys() == named.keys()
    groups = [{"params": [p], "lr": 0.03 * factors[n]} for n, p in named.items()]
    optimiser = torch.optim.Adam(groups)

    def loss():
        return -head.bound(h, labels).mean() + head.kl() / 400

    start = loss().item()
    for _ in range(60):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    # Labels without a cause: the bound sinks as the variance along the data does.
    assert loss().item() < start - 0.05
    assert float(head.moments(h)[1].detach().mean()) < 0.15
    # A new start keeps the parameters that an optimiser may hold.
    head.set_feature_energy(h)
    assert all(p is named[n] for n, p in head.named_parameters())
    assert math.isclose(float(head.moments(h)[1].detach().mean()), 0.25, rel_tol=0.03)


def test_the_eigenbasis_is_that_of_the_features():
    h = features(200) @ torch.randn(D, D, generator=torch.Generator().manual_seed(5)).double()
    head = GaussianHead(in_features=D, num_classes=K, covariance="eigen").double()
    with pytest.raises(ModelError, match="by features"):
        head.set_feature_energy(3.0)
    head.set_feature_energy(h)
    rotated = h @ head.basis
    second_moment = rotated.T @ rotated
    off = second_moment - second_moment.diagonal().diag()
    assert off.abs().max() < 1e-6 * second_moment.abs().max()
