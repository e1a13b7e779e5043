"""Label smoothing and the bonus on entropy: what they add, to which heads, and what they do."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from bayestune.errors import ConfigError
from bayestune.finalize import Features
from bayestune.progress import silent
from bayestune.training import fit
from bayestune.training.penalty import confidence

RANDOM = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(7, 4, generator=RANDOM, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])
PHI = torch.zeros(7, 1)


def test_smoothing_makes_the_nll_the_smoothed_cross_entropy() -> None:
    nll = cross_entropy(LOGITS, LABELS)
    added = confidence(LOGITS, Features(PHI, LABELS), 0.3, 0.0)
    expected = cross_entropy(LOGITS, LABELS, label_smoothing=0.3)
    torch.testing.assert_close(nll + added, expected)


def test_the_bonus_is_the_mean_entropy() -> None:
    added = confidence(LOGITS, Features(PHI, LABELS), 0.0, 0.2)
    expected = torch.distributions.Categorical(logits=LOGITS).entropy().mean()
    torch.testing.assert_close(added, -0.2 * expected)


def test_classes_that_do_not_exist_have_no_share_and_no_gradient() -> None:
    mask = torch.ones(7, 4, dtype=torch.bool)
    mask[:, 3] = False
    labels = LABELS.clamp_max(2)
    logits = LOGITS.clone().requires_grad_()
    added = confidence(logits, Features(PHI, labels, mask), 0.3, 0.2)
    fewer = confidence(LOGITS[:, :3], Features(PHI, labels), 0.3, 0.2)
    torch.testing.assert_close(added, fewer)
    added.backward()
    assert logits.grad is not None and bool(logits.grad[:, :3].all())
    assert not logits.grad[:, 3].any()


def test_examples_weigh_as_in_the_likelihood() -> None:
    weights = torch.tensor([2.0, 0, 1, 1, 1, 1, 1], dtype=torch.float64)
    each = [
        confidence(LOGITS[i : i + 1], Features(PHI[:1], LABELS[i : i + 1]), 0.1, 0.1)
        for i in range(7)
    ]
    added = confidence(LOGITS, Features(PHI, LABELS, None, weights), 0.1, 0.1)
    torch.testing.assert_close(added, (weights * torch.stack(each)).mean())


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_a_step_descends_on_them_and_reports_the_likelihood_alone(
    make, clear, make_loop, schedule
) -> None:
    model, rows = make("mle"), list(range(8))
    loop = make_loop(model, clear, schedule=schedule, clip=0.0, label_smoothing=0.3)
    model.backbone.train(True)
    batch = loop.rows.batch(loop.reader.batch(loop.rows.encoded, rows), rows)
    logits = model.head(batch.phi)
    plain = float(cross_entropy(logits, batch.labels).detach())
    smoothed = cross_entropy(logits, batch.labels, label_smoothing=0.3)
    (expected,) = torch.autograd.grad(smoothed, model.head.weight)
    seen = []
    loop.posterior.register_step_pre_hook(lambda *_: seen.append(model.head.weight.grad.clone()))
    nll, _, _ = loop.run_step(rows)
    torch.testing.assert_close(seen[0], expected)
    if schedule == "joint":  # else it is that of the head after its step
        assert nll == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("key", ["label_smoothing", "entropy_bonus"])
def test_training_with_either_is_less_confident(make, clear, clear_test, key) -> None:
    entropies = []
    for value in (0.0, 0.3):
        model = make("mle", epochs=8, lr=1e-2, keep="last", **{key: value})
        fit(model, clear, progress=silent)
        prediction = model.predict(clear_test)
        right = prediction.probs.argmax(1) == torch.tensor(clear_test.targets)
        assert right.float().mean() > 0.9
        entropies.append(float(prediction.entropy.mean()))
    assert entropies[1] > 1.3 * entropies[0]


@pytest.mark.parametrize("key", ["label_smoothing", "entropy_bonus"])
def test_heads_without_such_a_loss_refuse(make, clear, numbers, key) -> None:
    with pytest.raises(ConfigError, match=f"train.{key}.*this is a random head; use head.kind=lin"):
        fit(make(), clear, **{key: 0.05})
    model = make("mle", labels=numbers)
    with pytest.raises(ConfigError, match=f"train.{key}.*this is numbers"):
        fit(model, numbers, **{key: 0.05})
    with pytest.raises(ConfigError, match=f"train.{key} is 1.0; expected a number in"):
        make("mle", **{key: 1.0})
