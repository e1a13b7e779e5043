from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayestune.errors import ConfigError, StoreError
from bayestune.head import OrdinalHead
from bayestune.optim import StiefelAdam, param_groups
from bayestune.posterior import ordinal

K, D = 4, 5
CUTS = torch.tensor([-2.0, 0.5, 1.5])
TRUTH = torch.tensor([1.5, -1.0, 0.5, 0.0, 2.0])


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and ordered labels of a cumulative logit model with known w and cut points."""
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, D, generator=g)
    noise = torch.logit(torch.rand(n, generator=g))
    labels = torch.searchsorted(CUTS, phi @ TRUTH + noise)
    return phi, labels


def train(head: OrdinalHead, phi: Tensor, labels: Tensor, steps: int = 400) -> OrdinalHead:
    head.start(phi, labels)
    optimiser = StiefelAdam(param_groups(torch.nn.ModuleList([head]), lr=1.0, head_lr=0.02))
    for _ in range(steps):
        loss = -head.bound(phi, labels).mean() + head.kl() / len(phi)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head


@pytest.fixture(scope="module")
def trained() -> OrdinalHead:
    return train(OrdinalHead(in_features=D, num_classes=K), *rows(2000))


def test_known_cut_points_and_weights_are_recovered(trained) -> None:
    torch.testing.assert_close(trained.cuts.detach(), CUTS, rtol=0, atol=0.25)
    error = (trained.weight.detach().flatten() - TRUTH).abs()
    deviation = trained.row.spread.detach().flatten()
    assert (error < 4 * deviation).all() and (deviation < 0.1).all()


def test_it_predicts_the_shares_that_it_sees(trained) -> None:
    phi, labels = rows(4000, 9)
    p = trained.predictive(phi)
    shares = torch.bincount(labels, minlength=K) / 4000
    torch.testing.assert_close(p.probs.mean(0), shares, rtol=0, atol=0.02)
    nll = -p.probs.gather(1, labels[:, None]).log().mean()
    best = -ordinal.log_probs(phi @ TRUTH, CUTS).gather(1, labels[:, None]).mean()
    assert float(nll - best) < 0.01


def test_epistemic_uncertainty_falls_with_more_rows() -> None:
    probe = rows(200, 5)[0]
    amounts = []
    for n in (20, 80, 320):
        head = train(OrdinalHead(in_features=D, num_classes=K), *rows(n), steps=200)
        p = head.predictive(probe)
        torch.testing.assert_close(p.entropy, p.aleatoric + p.epistemic)
        amounts.append(float(p.epistemic.mean()))
    assert amounts[0] > 1.5 * amounts[1] > 1.5**2 * amounts[2] > 0


def test_bound_and_predictive_are_those_of_the_mathematics(trained) -> None:
    phi, labels = rows(9, 3)
    mu, var = (m.squeeze(-1) for m in trained.moments(phi))
    expected = ordinal.expected_log_likelihood(mu, var, labels, trained.cuts)
    weights = torch.linspace(0.5, 2, 9)
    torch.testing.assert_close(trained.bound(phi, labels, None, weights), weights * expected)
    probs, aleatoric = ordinal.expected_probs(mu, var, trained.cuts)
    torch.testing.assert_close(trained.predictive(phi).probs, probs.detach())
    torch.testing.assert_close(trained.predictive(phi).aleatoric, aleatoric.detach())
    torch.testing.assert_close(trained(phi), ordinal.log_probs(mu, trained.cuts))
    torch.testing.assert_close(trained.at(*trained.moments(phi)).probs, probs.detach())
    of_label = trained.at(*trained.moments(phi), 0.3).probs.gather(1, labels[:, None]).flatten()
    torch.testing.assert_close(trained.likelihood(*trained.moments(phi), labels, 0.3), of_label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(trained.bound(phi, labels), expected)
    with pytest.raises(ConfigError, match="no mask"):
        trained.bound(phi, labels, torch.ones(9, K, dtype=torch.bool))


def test_it_starts_where_a_typical_input_has_the_shares_of_the_classes() -> None:
    head = OrdinalHead(in_features=D, num_classes=K)
    phi, labels = rows(400)
    head.start(phi, labels)
    shares = (torch.bincount(labels, minlength=K) + 0.5) / 402
    torch.testing.assert_close(head(torch.zeros(1, D)).exp()[0], shares)
    # The prior spreads the score over K − 1 cut points.
    energy = float(phi.square().sum(1).mean())
    assert float(head.row.log_prior_variance.exp()) * energy == pytest.approx(2 * (K - 1) ** 2)
    assert head.lr_factors()["first"] == K - 1


@pytest.mark.parametrize("family", ["diagonal", "low_rank", "kronecker", "eigen", "dense"])
def test_every_family_serves_the_row(family) -> None:
    head = OrdinalHead(in_features=D, num_classes=K, covariance=family, columns=2)
    phi, labels = rows(60)
    train(head, phi, labels, steps=30)
    p = head.predictive(phi)
    torch.testing.assert_close(p.probs.sum(1), torch.ones(60))
    other = OrdinalHead(in_features=D, num_classes=K)
    other.load_posterior(head.posterior_tensors())
    with torch.no_grad():
        other.weight.copy_(head.weight)
    torch.testing.assert_close(other.predictive(phi).probs, p.probs)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_folding_is_what_was_searched(temperature) -> None:
    head, (phi, labels) = OrdinalHead(in_features=D, num_classes=K), rows(30)
    train(head, phi, labels, steps=20)
    expected = head.at(*head.moments(phi), temperature)
    head.fold_temperature(temperature)
    torch.testing.assert_close(head.predictive(phi).probs, expected.probs)
    torch.testing.assert_close(head.predictive(phi).epistemic, expected.epistemic)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_an_order_too(classes) -> None:
    head = OrdinalHead(in_features=D, num_classes=classes)
    assert head.cuts.shape == (classes - 1,)
    p = head.predictive(torch.zeros(1, D))
    torch.testing.assert_close(p.probs, torch.full((1, classes), 1 / classes))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "row"])
def test_another_posterior_is_refused(change) -> None:
    head = OrdinalHead(in_features=D, num_classes=K)
    tensors = head.posterior_tensors()
    if change == "missing":
        del tensors["first"]
    elif change == "unknown":
        tensors["more"] = torch.zeros(())
    elif change == "shape":
        tensors["gaps"] = torch.zeros(K)
    else:
        del tensors["row.log_scale"]
    with pytest.raises(StoreError):
        head.load_posterior(tensors)


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ConfigError, match="at least 2 classes"):
        OrdinalHead(in_features=D, num_classes=1)
    with pytest.raises(ConfigError, match="prior_scale"):
        OrdinalHead(in_features=D, num_classes=K, prior_scale=-1.0)
