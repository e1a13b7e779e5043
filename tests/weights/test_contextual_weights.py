"""Matrices of tokens: their divergence and noise, what the noise depends on, a known posterior."""

from __future__ import annotations

import math

import pytest
import torch
from backbone_zoo import CLASSES, backbone, encoded, texts
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from bayestune.backbone import Backbone, PrefixCache, Reader
from bayestune.errors import ModelError
from bayestune.head import LinearHead
from bayestune.peft import Context
from bayestune.weights import ContextualWeights, Site, sites
from bayestune.weights.contextual import matrix_kl

DATA = encoded(texts((9, 5, 12, 1, 7, 12)))
OPTIONS = {"prior_std": 0.2, "prior": "identity", "init_std": 0.3, "kl": "text", "rate": 1e-3}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@torch.no_grad()
def shake(module: nn.Module) -> None:
    random = torch.Generator().manual_seed(11)
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))


def alone(rank: int = 3, *, moved: bool = True, **options) -> ContextualWeights:
    """The distribution at one context in float64, without a transformer around it."""
    torch.manual_seed(0)
    context = Context(rank, 8)
    where = {"at": Site(context, context.matrix.weight)}
    made = ContextualWeights(where, **{**OPTIONS, **options})
    if moved:
        shake(context)
        shake(made)
    context.double()
    return made.double()


def noisy(kind: str = "llama", **options) -> Backbone:
    """A transformer with contextual LoRA whose contexts and deviations depend on the token."""
    made = backbone(kind, adapter={"kind": "contextual"})
    where = sites(made.peft_model, "context")
    made.weights = ContextualWeights(where, **{**OPTIONS, **options})
    for site in where.values():
        shake(site.module)
    shake(made.weights)
    return made


def head() -> LinearHead:
    rows = torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(5))
    return LinearHead(in_features=32, num_classes=CLASSES, rows=rows)


# mathematics ------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_independent_gaussians() -> None:
    mean, std = torch.randn(5, 3, 3).double(), torch.rand(5, 3, 3).double() + 0.1
    centre = torch.eye(3, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, std), Normal(centre.expand_as(mean), 0.4)).sum((1, 2))
    assert_close(matrix_kl(mean, std, centre, 0.4), expected)


def test_the_noise_of_a_value_is_that_of_a_random_matrix() -> None:
    weights, u = alone(), torch.tensor([0.7, -1.2, 0.4]).double()
    context = weights.context("at")
    with torch.no_grad():
        mean, std = context.matrices(u), weights.std("at", u)
        assert std.std() > 0.02
        assert_close(weights.value_std(std, u).square(), (std.square() * u.square()).sum(-1))
        weights.mask = torch.ones(1, 20_000)
        rows = u.expand(1, 20_000, 3)
        torch.manual_seed(1)
        drawn = weights.train_forward("at", rows, context(rows))[0]
        matrices = mean + std * torch.randn(20_000, 3, 3, dtype=torch.float64)
        by_hand = matrices @ u
    for found in (drawn, by_hand):
        var = weights.value_std(std, u).detach().square()
        error = 4 * (var / 20_000).sqrt()
        assert bool(((found.mean(0) - mean @ u).abs() < error).all())
        covariance = torch.cov(found.T)
        allowed = 4 * ((var[:, None] * var + (var * var).diag()) / 20_000).sqrt()
        assert bool(((covariance - var.diag()).abs() < allowed).all())


def test_a_token_without_a_value_has_a_gradient() -> None:
    weights, u = alone(), torch.zeros(1, 2, 3).double().requires_grad_()
    weights.mask = torch.ones(1, 2)
    weights.train_forward("at", u, weights.context("at")(u)).sum().backward()
    assert u.grad is not None and bool(torch.isfinite(u.grad).all())


def test_it_starts_at_the_identity_whose_divergence_the_priors_tell_apart() -> None:
    u = torch.randn(2, 4, 3).double()
    found = {}
    for prior in ("identity", "zero"):
        weights = alone(moved=False, prior=prior, init_std=0.2)
        weights.mask = torch.ones(2, 4)
        assert torch.equal(weights.context("at")(u), u)
        assert_close(weights.std("at", u), torch.full((2, 4, 3, 3), 0.2).double())
        weights.train_forward("at", u, u)
        found[prior] = float(weights.kl().detach())
    assert found["identity"] == pytest.approx(0, abs=1e-5)  # σ = β: the prior itself
    assert found["zero"] == pytest.approx(4 * 3 / (2 * 0.2**2), rel=1e-5)


def test_the_published_weight_is_a_named_factor() -> None:
    u = torch.randn(2, 4, 3).double()
    full, published = (alone(kl=kl) for kl in ("text", "published"))
    for weights in (full, published):
        weights.mask = torch.ones(2, 4)
        weights.train_forward("at", u, u)
    assert_close(published.kl(), 1e-6 * full.kl())


def test_a_known_posterior_is_found() -> None:
    """One token u = (2, 0): data on E u say something of E's first column and nothing of the rest.

    With n observations of each entry, of variance s², column one has precision 1/β² + 4 n/s².
    """
    weights = alone(2, moved=False, init_std=0.1, prior_std=0.5)
    context, u = weights.context("at"), torch.tensor([[[2.0, 0.0]]]).double()
    weights.mask = torch.ones(1, 1)
    precision, y = 3.0, torch.tensor([1.0, 0.8]).double()
    optimizer = torch.optim.Adam([*context.parameters(), *weights.parameters()], lr=0.01)
    ends: list[tuple[Tensor, Tensor]] = []
    for step in range(1500):
        optimizer.zero_grad()
        value = weights.train_forward("at", u, context(u))[0, 0]
        (0.5 * precision * (value - y).square().sum() + weights.kl()).backward()
        optimizer.step()
        if step >= 750:
            with torch.no_grad():
                ends.append((context.matrices(u)[0, 0], weights.std("at", u)[0, 0]))
    mean, std = (torch.stack(parts).mean(0) for parts in zip(*ends, strict=True))
    total = 4 + 4 * precision
    first = (4 * torch.tensor([1.0, 0.0]) + 2 * precision * y) / total
    assert_close(
        mean, torch.stack([first, torch.tensor([0.0, 1.0]).double()], 1), rtol=0, atol=0.03
    )
    column = torch.tensor([1 / math.sqrt(total), 0.5]).double()
    assert_close(std, column.expand(2, 2), rtol=0, atol=0.03)


# in a transformer -------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_has_no_divergence(side) -> None:
    model = noisy()
    weights = model.weights
    assert weights is not None
    reader = Reader(model, 0, padding_side=side)
    model.train(True)

    def divergence(rows: list[int]) -> float:
        model(**reader.tensors(DATA, rows))
        return float(weights.kl().detach())

    with torch.no_grad():
        # The first adapted layer alone: what comes after it depends on the noise.
        for name in list(weights.sites)[3:]:
            weights.sites[name].module._forward_hooks.clear()
        single = [divergence([i]) for i in range(len(DATA.ids))]
        together = divergence(list(range(len(DATA.ids))))
    assert together == pytest.approx(sum(single) / len(single), rel=1e-5)
    weights.after_step(1, 1)
    assert float(weights.kl()) == 0


def test_noise_depends_on_seed_draw_site_text_and_position_alone() -> None:
    model, top = noisy(), head()
    phi, logits = Reader(model, 0).draws(DATA, top, range(3), 7)
    torch.manual_seed(99)
    for size, side, cached in ((1, "right", False), (4, "left", False), (2, "left", True)):
        again = Reader(model, 0, PrefixCache("x") if cached else None, padding_side=side)
        again.fill(DATA)
        other_phi, other = again.draws(DATA, top, range(3), 7, size)
        assert_close(other, logits, **CLOSE)
        assert_close(other_phi, phi, **CLOSE)
    turned = [5, 2, 0]
    some = Reader(model, 0).draws(DATA.select(turned), top, [2, 0], 7)[1]
    assert_close(some, logits[[2, 0]][:, turned], **CLOSE)
    assert_close(phi, Reader(model, 0).features(DATA), **CLOSE)
    other = Reader(model, 0).draws(DATA, top, range(3), 8)[1]
    assert (other - logits).abs().amax(2).min() > 1e-3
    assert logits.std(0).min() > 1e-3
    assert not torch.allclose(logits[:, 2], logits[:, 5], atol=1e-2)  # two texts of a length


def test_draws_one_by_one_are_those_of_a_pass_for_all() -> None:
    weights = alone()
    u = torch.randn(2, 4, 3).double()
    mask, keys = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool(), (b"one", b"two")
    context = weights.context("at")
    with torch.no_grad():
        with weights.drawing([0, 3], 1) as held:
            held.mask, held.keys = mask, keys
            whole = context(u.repeat(3, 1, 1)).view(3, 2, 4, 3)
        for block, draw in ((1, 0), (2, 3)):
            with weights.drawing([draw], 1, blocks=False) as held:
                held.mask, held.keys = mask, keys
                assert_close(context(u), whole[block])
        with weights.drawing([], 1, blocks=False):
            assert_close(context(u), whole[0])
    assert (whole[1] - whole[0])[mask].abs().min() > 0
    assert not (whole[1:] - whole[0])[:, ~mask].any()


def test_the_noise_of_draws_is_standard_and_fresh_at_every_token() -> None:
    weights = alone(moved=False)
    u = torch.ones(41, 50, 3).double()
    with torch.no_grad(), weights.drawing(range(40), 2) as held:
        held.mask, held.keys = torch.ones(1, 50, dtype=torch.bool), (b"text",)
        noise = (weights.context("at")(u) - u)[1:] / (0.3 * math.sqrt(3))
    n = noise.numel()
    assert abs(float(noise.mean())) < 4 / math.sqrt(n)
    assert abs(float(noise.square().mean()) - 1) < 4 * math.sqrt(2 / n)
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())


def test_an_encoder_is_as_good_as_a_decoder() -> None:
    model, top = noisy("bert"), head()
    logits = Reader(model, 0).draws(DATA, top, range(2), 7)[1]
    assert_close(Reader(model, 0).draws(DATA, top, range(2), 7, 1)[1], logits, **CLOSE)
    assert logits.std(0).min() > 1e-3


def test_a_layer_that_mixes_positions_is_refused() -> None:
    weights = alone()
    weights.mask = torch.ones(2, 4)
    with pytest.raises(ModelError, match=r"every token of the batch at at, 8 of them, and got \(3"):
        weights.train_forward("at", torch.ones(3, 3).double(), torch.ones(3, 3).double())


def test_parameters_at_rank_eight() -> None:
    """8.9 thousand beside LoRA's own at each adapted layer of any width, as published."""
    with torch.device("meta"):
        context = Context(8, 64)
        weights = ContextualWeights({"at": Site(context, context.matrix.weight)}, **OPTIONS)
    parts = [*context.parameters(), *weights.parameters()]
    assert sum(p.numel() for p in parts) == 8 * 64 + 64 + 2 * (64 * 64 + 64) == 8896
