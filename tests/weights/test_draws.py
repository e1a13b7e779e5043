"""Draws of adapter weights: one pass is as good as one by one, and a draw is a draw for ever."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import CLASSES, DECODERS, ENCODERS, backbone, encoded, texts
from torch.testing import assert_close

from bayestune.backbone import Backbone, PrefixCache, Reader
from bayestune.errors import ModelError, StoreError
from bayestune.head import LinearHead
from bayestune.weights import (
    DropoutWeights,
    GaussianWeights,
    MemberWeights,
    ScaledWeights,
    WeightDistribution,
    dropout_sites,
    head_site,
    sites,
)

LENGTHS = (9, 5, 12, 1, 7, 12, 3, 5)
DATA = encoded(texts(LENGTHS))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # of logits of about 5
SEED = 7


def make_head(width: int = 32) -> LinearHead:
    rows = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(5))
    return LinearHead(in_features=width, num_classes=CLASSES, rows=rows)


def noisy(kind: str = "llama", factor: str = "A", **options) -> Backbone:
    """An adapted transformer with a wide Gaussian over one factor of its adapter."""
    adapter = "polar" if factor == "core" else "lora"
    made = backbone(kind, adapter={"kind": adapter}, **options)
    where = sites(made.peft_model, factor)  # pyright: ignore[reportArgumentType]
    made.weights = GaussianWeights(where, prior_std=1.0, init_std=0.4, rate=0.1)
    return made


def reader(model: Backbone, side: str = "right", *, cached: bool = False) -> Reader:
    cache = PrefixCache("x") if cached else None
    made = Reader(model, 0, cache, padding_side=side)
    made.fill(DATA)
    return made


def by_hand(model: Backbone, head: LinearHead, draws: list[int]) -> torch.Tensor:
    """Logits with the deviations added to the weights themselves, one draw after the other."""
    weights, found = model.weights, []
    assert weights is not None
    for s in draws:
        before = {name: site.weight.detach().clone() for name, site in weights.sites.items()}
        moved = {name: weights.deviations(name, [s], SEED)[0] for name in weights.sites}
        with torch.no_grad():
            for name, site in weights.sites.items():
                site.weight.add_(moved[name])
            found.append(head(reader(model).features(DATA)))
            for name, site in weights.sites.items():
                site.weight.copy_(before[name])
    return torch.stack(found)


@pytest.mark.parametrize("factor", ["A", "B", "core"])
@pytest.mark.parametrize("layers", ["top:2", "all"])
def test_one_pass_gives_what_the_weights_of_each_draw_give(factor, layers):
    model, head = noisy(factor=factor, layers=layers), make_head()
    phi, logits = reader(model).draws(DATA, head, [0, 1, 4], SEED)
    expected = by_hand(model, head, [0, 1, 4])
    assert_close(logits, expected, **CLOSE)
    assert_close(phi, reader(model).features(DATA), **CLOSE)
    assert (logits - head(phi)).std(0).min() > 1e-3, "a draw does nothing"


@pytest.mark.parametrize("kind", ["gemma3", "opt", "gpt_neox", "mixtral", "deberta", *ENCODERS[:4]])
def test_every_way_of_building_a_transformer(kind):
    model = noisy(kind)
    head = make_head(model(**reader(model).tensors(DATA, [0])).shape[1])
    _, logits = reader(model).draws(DATA, head, [0, 2], SEED)
    assert_close(logits, by_hand(model, head, [0, 2]), **CLOSE)
    assert set(DECODERS) & {"gemma3", "opt"}


@pytest.mark.parametrize(("size", "cached", "side"), [(1, False, "right"), (3, True, "left")])
def test_batches_padding_and_cache_change_nothing(size, cached, side):
    model, head = noisy(), make_head()
    phi, logits = reader(model).draws(DATA, head, range(3), SEED)
    again = reader(model, side, cached=cached).draws(DATA, head, range(3), SEED, size)
    assert_close(again[0], phi, **CLOSE)
    assert_close(again[1], logits, **CLOSE)
    turned = list(reversed(range(len(LENGTHS))))
    again = reader(model).draws(DATA.select(turned), head, range(3), SEED)
    assert_close(again[1], logits[:, turned], **CLOSE)


def test_a_draw_depends_on_seed_index_and_site_alone():
    model = noisy()
    weights = model.weights
    assert weights is not None
    first, second = list(weights.sites)[:2]
    some = weights.deviations(first, [0, 1, 2], 1)
    torch.manual_seed(99)
    assert torch.equal(weights.deviations(first, [2, 0], 1), some[[2, 0]])
    assert not torch.equal(some[0], some[1])
    assert not torch.equal(weights.deviations(first, [0], 2), some[:1])
    other = weights.deviations(second, [0], 1)
    assert other.shape != some[:1].shape or not torch.equal(other, some[:1])


def test_nothing_is_left_behind():
    model, head = noisy(), make_head()
    before = reader(model).features(DATA)
    with pytest.raises(ZeroDivisionError), model.weights.drawing([0], 0):  # pyright: ignore
        raise ZeroDivisionError
    reader(model).draws(DATA, head, [0], SEED)
    assert torch.equal(reader(model).features(DATA), before)
    phi, logits = reader(model).draws(encoded([]), head, [0, 1], SEED)
    assert phi.shape[0] == 0 and logits.shape[:2] == (2, 0)


def test_training_is_noisy_and_evaluation_is_not():
    model = noisy()
    tensors = reader(model).tensors(DATA, range(4))
    with torch.no_grad():
        model.train(True)
        assert not torch.equal(model(**tensors), model(**tensors))
        model.train(False)
        assert torch.equal(model(**tensors), model(**tensors))


def test_members_are_draws_of_themselves():
    model, head = backbone("llama", adapter={"kind": "lora"}), make_head()
    where = sites(model.peft_model, "A", "B") | head_site(head)
    weights = model.weights = MemberWeights(where, members=3)
    expected = []
    for m in range(3):
        torch.manual_seed(m)
        with torch.no_grad():
            for site in where.values():
                site.weight.copy_(0.3 * torch.randn_like(site.weight))
        weights.keep(m)
        expected.append(head(reader(model).features(DATA)).detach())
    weights.put(0)
    _, logits = reader(model).draws(DATA, head, range(3), SEED)
    assert_close(logits, torch.stack(expected), **CLOSE)
    with torch.no_grad():
        head.fold_temperature(2.0)
    weights.fold_temperature(2.0)
    _, logits = reader(model).draws(DATA, head, range(3), SEED)
    assert_close(logits, torch.stack(expected) / 2, **CLOSE)
    start = next(iter(where.values())).weight.clone()
    weights.start()
    assert not torch.equal(next(iter(where.values())).weight, start)
    assert all(s.weight.abs().max() == 0 for name, s in where.items() if name.endswith(".B"))


# masks of dropout ---------------------------------------------------------------------------------


def dropping(rate: float = 0.4) -> Backbone:
    model = backbone("llama", adapter={"kind": "lora", "dropout": rate})
    model.weights = DropoutWeights(dropout_sites(model.peft_model), rate=rate)
    return model


def test_a_text_keeps_its_masks_in_any_company():
    model, head = dropping(), make_head()
    _, logits = reader(model).draws(DATA, head, range(3), SEED)
    for size, side in ((1, "right"), (3, "left")):
        again = reader(model, side).draws(DATA, head, range(3), SEED, size)[1]
        assert_close(again, logits, **CLOSE)
    assert logits.std(0).min() > 1e-3
    other = reader(model).draws(DATA, head, range(3), SEED + 1)[1]
    assert (other - logits).abs().amax(2).min() > 1e-5


def test_positions_before_a_change_keep_their_masks():
    """A text and one that begins like it are different texts; the masks are drawn in order."""
    weights = dropping().weights
    assert weights is not None
    name = next(iter(weights.sites))
    width = weights.sites[name].weight.shape[1]
    masks = []
    for length in (4, 6):
        with weights.drawing([0], SEED) as held:
            held.mask, held.keys = torch.ones(1, length, dtype=torch.bool), (b"text",)
            x = torch.ones(2, length, width)
            masks.append(weights.held_forward(name, x, x, held)[1])
    assert torch.equal(masks[0], masks[1][:4])


def test_masks_drop_the_stated_share_and_keep_the_mean():
    weights = dropping(0.3).weights
    assert weights is not None
    name = next(iter(weights.sites))
    x = torch.ones(41, 64, weights.sites[name].weight.shape[1])
    with weights.drawing(range(40), SEED) as held:
        held.mask, held.keys = torch.ones(1, 64, dtype=torch.bool), (b"text",)
        out = weights.held_forward(name, x, x, held)[1:]
    kept = (out > 0).float()
    error = 4 * (0.3 * 0.7 / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - 0.7) < error
    assert torch.equal(out[out > 0], torch.full_like(out[out > 0], 1 / 0.7))


# places -------------------------------------------------------------------------------------------


def test_a_factor_that_is_not_there():
    with pytest.raises(ModelError, match="no factor core"):
        sites(backbone("llama", adapter={"kind": "lora"}).peft_model, "core")
    with pytest.raises(ModelError, match="no factor A or B"):
        sites(backbone("llama").peft_model, "A", "B")
    with pytest.raises(ModelError, match="no LoRA layer"):
        dropout_sites(backbone("llama").peft_model)


def test_tensors_of_another_model_are_refused():
    weights = noisy().weights
    assert isinstance(weights, WeightDistribution)
    tensors = {name: t.clone() for name, t in weights.tensors().items()}
    weights.load(tensors)
    name = next(iter(tensors))
    with pytest.raises(StoreError, match="of another shape"):
        weights.load({**tensors, name: torch.zeros(1)})
    with pytest.raises(StoreError, match="is missing"):
        weights.load({k: v for k, v in tensors.items() if k != name})


def test_scales_start_as_the_map_that_was_there():
    model = backbone("llama", adapter={"kind": "lora"})
    before = reader(model).features(DATA)
    where = sites(model.peft_model, "A")
    A = {name: site.weight.detach().clone() for name, site in where.items()}
    weights = model.weights = ScaledWeights(where, init_std=0.05, rate=0.1, reverse=False)
    for name, site in where.items():  # U is dropped, so that only the row space is the same
        V, (mean, std) = site.weight, weights.moments(name)
        assert_close(V @ V.T, torch.eye(len(V)), atol=1e-5, rtol=0)
        assert_close(torch.linalg.svdvals(A[name]), mean)
        assert ((std > 0.05 / 2**0.5 - 1e-6) & (std < 0.05 + 1e-6)).all()
    still = reader(model).features(DATA)
    assert not torch.allclose(still, before)
    _, logits = reader(model).draws(DATA, make_head(), range(4), SEED)
    weights.fold()
    assert_close(reader(model).features(DATA), still, **CLOSE)
    assert_close(reader(model).draws(DATA, make_head(), range(4), SEED)[1], logits, **CLOSE)
