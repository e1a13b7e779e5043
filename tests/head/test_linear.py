from __future__ import annotations

import pytest
import torch

from bayestune.errors import ConfigError, ModelError, StoreError
from bayestune.head import GaussianHead, LinearHead
from bayestune.posterior import Predictive

K, D = 3, 5


def features() -> torch.Tensor:
    return torch.randn(4, D, generator=torch.Generator().manual_seed(0))


def rows() -> torch.Tensor:
    return torch.randn(K, D, generator=torch.Generator().manual_seed(1))


def test_a_point_head_has_logits_and_nothing_else():
    head, h = LinearHead(in_features=D, num_classes=K, rows=rows()), features()
    mu, var = head.moments(h)
    torch.testing.assert_close(mu, h @ rows().T)
    assert torch.equal(var, torch.zeros(4, K))
    assert head.kl() == 0
    assert head.family == "point"
    labels = torch.tensor([0, 1, 2, 0])
    expected = mu.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(head.bound(h, labels), expected)
    torch.testing.assert_close(head.bound(h, labels, weights=2 * torch.ones(4)), 2 * expected)
    assert torch.equal(LinearHead(in_features=D, num_classes=K)(h), torch.zeros(4, K))


def test_both_heads_answer_to_the_same_calls():
    point, bayes = (
        cls(in_features=D, num_classes=K, feature_energy=5.0) for cls in (LinearHead, GaussianHead)
    )
    public = {n for n in dir(LinearHead) if not n.startswith("_")}
    assert public <= {n for n in dir(GaussianHead) if not n.startswith("_")}
    assert point.is_bayes_head
    assert bayes.is_bayes_head
    assert point.lr_factors()["weight"] == bayes.lr_factors()["weight"]
    assert {n for n, _ in point.named_parameters()} <= {n for n, _ in bayes.named_parameters()}


def test_fold_temperature_divides_the_logits():
    head, h = LinearHead(in_features=D, num_classes=K, rows=rows()), features()
    expected = Predictive.from_point(head(h) / 2.5)
    head.fold_temperature(2.5)
    torch.testing.assert_close(Predictive.from_point(head(h)).probs, expected.probs)


def test_what_is_stored_is_restored_and_nothing_else_is_taken():
    head = LinearHead(in_features=D, num_classes=K, feature_energy=5.0)
    other = LinearHead(in_features=D, num_classes=K)
    with pytest.raises(ModelError, match="set_feature_energy"):
        other.lr_factors()
    other.load_posterior(head.posterior_tensors())
    assert other.lr_factors() == head.lr_factors()
    bayes = GaussianHead(in_features=D, num_classes=K, feature_energy=5.0)
    with pytest.raises(StoreError, match="point"):
        other.load_posterior(bayes.posterior_tensors())


def test_bad_arguments_are_errors():
    with pytest.raises(ConfigError, match="at least 1 of each"):
        LinearHead(in_features=D, num_classes=0)
    alone = LinearHead(in_features=D, num_classes=1)
    with pytest.raises(ModelError, match="at least 2 classes"):
        alone.bound(torch.ones(2, D), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="shape"):
        LinearHead(in_features=D, num_classes=K, rows=rows().T)
    with pytest.raises(ConfigError, match="temperature"):
        LinearHead(in_features=D, num_classes=K).fold_temperature(-1.0)
