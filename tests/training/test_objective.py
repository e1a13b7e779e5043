"""The objective of a step against a computation by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tiny_bases import move
from torch import Tensor

from bayestune.data import Task
from bayestune.head import GaussianHead
from bayestune.model import BayesModel
from bayestune.training.loop import Loop

BATCH = [0, 3, 5, 8, 13, 21, 34]


@pytest.fixture
def model(make) -> BayesModel:
    return move(make(schedule="joint"))


def spread(head: GaussianHead) -> None:
    """Leave the initial posterior: every deviation its own, the mean off the prior's."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        head.log_scale.add_(torch.randn(head.log_scale.shape, generator=generator) * 0.3)
        head.prior_mean.copy_(torch.randn(head.prior_mean.shape, generator=generator) * 0.1)


def losses(loop: Loop, batches: Sequence[list[int]], monkeypatch) -> list[float]:
    """Run steps and return every objective whose gradient was taken, weights left alone."""
    found: list[float] = []

    def note(loss: Tensor, batch: list[int]) -> None:
        found.append(loss.item())

    monkeypatch.setattr(loop, "_descend", note)
    monkeypatch.setattr(loop, "natural", None)  # its step needs a gradient
    for batch in batches:
        loop.run_step(batch)
    return found


def by_hand(model: BayesModel, loop: Loop, task: Task, batch: list[int]) -> tuple[float, float]:
    """Return mean NLL bound and KL from nothing but the tensors of the head and the features."""
    head = model.head
    phi = model.features(task.select(batch)).double()
    W, s = head.weight.detach().double(), head.log_scale.detach().double().exp()
    bounds: list[float] = []
    for n, i in enumerate(batch):
        example, k = task[i], task[i].label
        exists = range(len(example.choices) if example.choices else len(task.labels))
        mu = {j: float(sum(W[j] * phi[n])) for j in exists}
        var = {j: float(sum((s[j] * phi[n]) ** 2)) for j in exists}
        normaliser = torch.tensor([mu[j] + var[j] / 2 for j in exists]).double().logsumexp(0)
        weight = 1.0 if loop.rows.weights is None else float(loop.rows.weights[i])
        bounds.append(weight * (mu[k] - float(normaliser)))
    prior = float(head.log_prior_variance.double().exp())
    centred = (W - head.prior_mean.double()) ** 2
    kl = ((s**2 + centred) / prior - 1 - (s**2 / prior).log()).sum() / 2
    return -sum(bounds) / len(bounds), float(kl)


def test_the_objective_is_the_jensen_bound_and_the_divergence_over_n(
    model, clear, make_loop, monkeypatch
) -> None:
    loop = make_loop(model, clear, kappa=0.7)
    spread(model.head)
    nll, kl = by_hand(model, loop, clear, BATCH)
    assert nll > 0 and kl > 1
    (found,) = losses(loop, [BATCH], monkeypatch)
    assert found == pytest.approx(nll + 0.7 / len(clear) * kl, rel=2e-5)
    terms = model.method.loss(
        model.head, loop.rows.batch(loop.reader.batch(loop.rows.encoded, BATCH), BATCH)
    )
    assert terms.nll.item() == pytest.approx(nll, rel=2e-5)
    assert terms.kl.item() == pytest.approx(kl, rel=2e-5)


def test_absent_choices_are_not_in_the_normaliser(make, choice, make_loop, monkeypatch) -> None:
    model = move(make(labels=choice, schedule="joint"))
    loop = make_loop(model, choice, kappa=0.3)
    spread(model.head)
    nll, kl = by_hand(model, loop, choice, BATCH)
    (found,) = losses(loop, [BATCH], monkeypatch)
    assert found == pytest.approx(nll + 0.3 / len(choice) * kl, rel=2e-5)


@pytest.mark.parametrize("spec", ["balanced", "login=5"])
def test_class_weights_weigh_the_bound_and_not_the_divergence(
    model, clear, make_loop, monkeypatch, spec
) -> None:
    unequal = clear.select([i for i in range(len(clear)) if clear[i].label != 2 or i % 4 == 0])
    loop = make_loop(model, unequal, kappa=0.7, class_weights=spec)
    assert loop.rows.weights is not None and len(loop.rows.weights.unique()) > 1
    spread(model.head)
    nll, kl = by_hand(model, loop, unequal, BATCH)
    (found,) = losses(loop, [BATCH], monkeypatch)
    assert found == pytest.approx(nll + 0.7 / len(unequal) * kl, rel=2e-5)
    loop.rows = type(loop.rows)(loop.rows.encoded, loop.rows.labels, loop.rows.mask, None)
    (plain,) = losses(loop, [BATCH], monkeypatch)
    assert abs(plain - found) > 1e-3


def test_the_divergence_is_weighed_by_the_training_rows_and_not_by_the_batch(
    model, clear, make_loop, monkeypatch
) -> None:
    twice = Task.from_rows(
        [{"text": e.text, "label": clear.labels[e.label]} for e in [*clear, *clear]], like=clear
    )

    def objective(task: Task, kappa: float, batch: list[int]) -> tuple[float, float]:
        loop = make_loop(model, task, kappa=kappa)
        _, kl = by_hand(model, loop, task, batch)
        return losses(loop, [batch], monkeypatch)[0], kl

    for batch in (BATCH, BATCH[:2]):
        bare, _ = objective(clear, 0.0, batch)
        once, kl = objective(clear, 1.0, batch)
        half, _ = objective(twice, 1.0, batch)
        assert once - bare == pytest.approx(kl / 120, rel=1e-4)
        assert half - bare == pytest.approx(kl / 240, rel=1e-4)
        assert objective(clear, 3.0, batch)[0] - bare == pytest.approx(3 * kl / 120, rel=1e-4)


def test_a_point_head_is_trained_by_cross_entropy(make, clear, make_loop, monkeypatch) -> None:
    model = move(make("mle", schedule="joint", kl=0.0))
    loop = make_loop(model, clear, kappa=0.0)
    (found,) = losses(loop, [BATCH], monkeypatch)
    logits = model.features(clear.select(BATCH)).double() @ model.head.weight.double().T
    expected = torch.nn.functional.cross_entropy(logits, loop.rows.labels[BATCH])
    assert found == pytest.approx(expected.item(), rel=2e-5)


def test_the_meter_weighs_batches_by_their_examples(
    make, clear, make_loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = clear.select(range(10))
    loop = make_loop(make(), some, batch_size=8)
    seen: list[tuple[float, int]] = []
    step: Callable[[list[int]], tuple[float, float, float]] = loop.run_step

    def run_step(batch: list[int]) -> tuple[float, float, float]:
        terms = step(batch)
        seen.append((terms[0], len(batch)))
        return terms

    monkeypatch.setattr(loop, "run_step", run_step)
    means = loop.run_epoch(lambda count=1, note="": None)
    assert sorted(count for _, count in seen) == [2, 8]
    assert means["train_nll"] == pytest.approx(sum(nll * count for nll, count in seen) / 10)
