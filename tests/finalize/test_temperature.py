"""The temperature against brute force, and against the one that drew the labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayestune.config import PredictConfig
from bayestune.finalize import fit_temperature, held_out_nll, item_nll, predictive_at
from bayestune.finalize.temperature import PRIOR_SD
from bayestune.head import LinearHead
from bayestune.methods import parts
from bayestune.posterior.predictive import Predictive


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw(logits: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()


# recovery ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_it_finds_the_temperature_that_drew_the_labels(temperature: float) -> None:
    logits = normal(20_000, 4, seed=1, scale=2.0)
    found, nll = fit_temperature(logits, None, draw(logits / temperature, 2))
    assert found == pytest.approx(temperature, rel=0.05)
    entropy = torch.special.entr((logits / temperature).softmax(1)).sum(1).mean()
    assert nll == pytest.approx(float(entropy), abs=0.03)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_it_finds_it_under_a_posterior_too(temperature: float) -> None:
    mu = normal(4000, 3, seed=3, scale=2.0).float()
    var = normal(4000, 3, seed=4).square().float() * 2
    labels = draw((mu + var.sqrt() * normal(4000, 3, seed=5)) / temperature, 6)
    found, _ = fit_temperature(mu, var, labels)
    assert found == pytest.approx(temperature, rel=0.08)


def test_it_finds_it_among_the_classes_that_exist() -> None:
    logits = normal(20_000, 4, seed=7, scale=2.0)
    mask = torch.arange(4) < torch.arange(20_000)[:, None] % 3 + 2
    labels = draw((logits / 1.7).masked_fill(~mask, -torch.inf), 8)
    found, _ = fit_temperature(logits, None, labels, mask)
    assert found == pytest.approx(1.7, rel=0.05)


# the objective ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "spread"), [(5, 0.0), (2000, 0.0), (5, 1.5), (40, 1.5)])
def test_it_is_the_minimum_of_the_penalised_likelihood(count: int, spread: float) -> None:
    mu = normal(count, 3, seed=count, scale=3.0)
    var = torch.full_like(mu, spread) if spread else None
    labels = draw(mu / 2, count + 1)
    found, nll = fit_temperature(mu, var, labels)

    def loss(log: float) -> float:
        moments = (mu / math.exp(log), None if var is None else var / math.exp(2 * log))
        if moments[1] is None:
            probs = moments[0].softmax(1)
        else:
            probs = Predictive.from_moments(moments[0], moments[1]).probs
        total = -probs.gather(1, labels[:, None]).log().sum()
        return float(total) + log**2 / (2 * PRIOR_SD**2)

    around = min((math.log(16) * (i / 20 - 1) for i in range(41)), key=loss)
    best = min((around + 0.2 * (i / 20 - 1) for i in range(41)), key=loss)
    assert math.log(found) == pytest.approx(best, abs=0.03)
    assert nll == held_out_nll(predictive_at(mu, var, found).probs, labels)


@pytest.mark.parametrize(("right", "side"), [(True, -1), (False, 1)])
def test_five_rows_cannot_drive_it_to_extremes(right: bool, side: int) -> None:
    logits = torch.tensor([[4.0, 0.0]]).repeat(5, 1)
    labels = torch.full((5,), 0 if right else 1)
    few, _ = fit_temperature(logits, None, labels)
    many, _ = fit_temperature(logits.repeat(400, 1), None, labels.repeat(400))
    assert side * math.log(few) > 0 and side * math.log(many) > 1.2 * side * math.log(few)
    assert 0.2 < few < 5
    assert 1 / 16 <= many <= 16
    one, _ = fit_temperature(logits[:1], None, labels[:1])
    assert abs(math.log(one)) < abs(math.log(few))


def test_logits_that_say_nothing_leave_it_at_one() -> None:
    found, nll = fit_temperature(torch.zeros(50, 3), None, torch.arange(50) % 3)
    assert found == pytest.approx(1.0, abs=0.02)
    assert nll == pytest.approx(math.log(3))


def test_the_likelihood_of_a_row_is_never_infinite() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    losses = item_nll(probs, torch.tensor([1, 0]))
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx([300 * math.log(10), math.log(4)])
    assert held_out_nll(probs, torch.tensor([0, 1])) == pytest.approx(-math.log(0.75) / 2)


# folding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.6, 3.0])
@pytest.mark.parametrize("family", ["diagonal", "dense", "point"])
def test_a_folded_head_predicts_what_the_temperature_did(
    rows, gaussian, temperature, family
) -> None:
    held = rows(50, 1)
    head = gaussian()
    if family == "dense":
        head.set_spread("dense", factor=torch.diag_embed(head.log_scale.exp()) + 0.05)
    if family == "point":
        mean = head.weight.detach()
        head = LinearHead(in_features=mean.shape[1], num_classes=mean.shape[0], rows=mean)
    with torch.no_grad():
        mu, var = head.moments(held.phi)
    expected = predictive_at(mu, None if family == "point" else var, temperature)
    head.fold_temperature(temperature)
    folded = parts.predict(head, held.phi, PredictConfig())
    for name in ("probs", "entropy", "aleatoric", "epistemic"):
        torch.testing.assert_close(
            getattr(folded, name), getattr(expected, name), rtol=1e-4, atol=1e-6
        )
    plain = predictive_at(mu, None if family == "point" else var, 1.0)
    assert not torch.allclose(plain.probs, expected.probs, atol=1e-2)
