"""Derivatives of single rows from passes over batches, against autograd on every row alone."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import move
from torch import nn
from toy_sites import Toy

from bayestune.backbone import Reader
from bayestune.errors import ModelError
from bayestune.model import build
from bayestune.weights import Site, head_site, sites
from bayestune.weights.jacobian import pulled, recorded


@pytest.mark.parametrize("positions", [1, 4])
def test_they_are_those_of_autograd(positions) -> None:
    toy = Toy(5, positions)
    exact = toy.jacobians("A", "B", "head")[1]
    for name, found in toy.pulls("A", "B", "head").items():
        torch.testing.assert_close(found, exact[name])


TEXTS = ["my parcel", "please tell me about the refund invoice today", "login again"]


@pytest.mark.parametrize("base", ["llama", "bert"])
@pytest.mark.parametrize(
    ("kind", "side", "pooling"),
    [("lora", "right", "auto"), ("lora", "left", "mean"), ("polar", "right", "auto")],
)
def test_of_whole_models_with_texts_of_several_lengths(
    llama_base, bert_base, clear, base, kind, side, pooling
) -> None:
    if (base, side) == ("bert", "left"):
        side, pooling = "right", "cls"
    folder = {"llama": llama_base, "bert": bert_base}[base]
    options = {"adapter": {"kind": kind, "targets": "all-linear"}, "layers": "top:2", "rank": 3}
    model = move(build("mle", str(folder), clear, head={"pooling": pooling}, **options))
    where = sites(model.backbone.peft_model, "A", "B", "core")
    where |= head_site(model.head)
    encoded = model.encode(model.read(TEXTS))
    reader = Reader(model.backbone, 0, padding_side=side)
    with recorded(where) as calls:
        logits = model.head(reader.batch(encoded, [0, 1, 2]))
    weights = [site.weight for site in where.values()]
    for k in range(3):
        found = pulled(logits, calls, torch.eye(3)[k].expand_as(logits))
        for row in range(3):
            alone = model.head(reader.batch(encoded, [row]))[0, k]
            exact = torch.autograd.grad(alone, weights)
            assert max(float(g.abs().max()) for g in exact) > 0.1
            for name, g in zip(where, exact, strict=True):
                scale = float(g.abs().max()) + 1e-3
                torch.testing.assert_close(found[name][row] / scale, g / scale, rtol=0, atol=1e-4)


def test_a_site_called_twice_counts_both_times() -> None:
    linear = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with recorded({"site": Site(linear, linear.weight)}) as calls:
        logits = linear(torch.tanh(linear(x)))
    found = pulled(logits, calls, torch.ones_like(logits))["site"]
    for row in range(4):
        alone = linear(torch.tanh(linear(x[row]))).sum()
        torch.testing.assert_close(found[row], torch.autograd.grad(alone, linear.weight)[0])


def test_rows_that_cannot_be_told_apart_are_an_error() -> None:
    linear = nn.Linear(3, 2)
    site = {"experts": Site(linear, linear.weight)}
    with recorded(site) as calls:
        logits = linear(torch.randn(2 * 5, 3)).view(2, 5, 2).sum(1)
    with pytest.raises(ModelError, match="experts does not see the 2 rows"):
        pulled(logits, calls, torch.ones_like(logits))
    with recorded(site) as calls:
        logits = torch.randn(2, 2, requires_grad=True)
    with pytest.raises(ModelError, match="one by one"):
        pulled(logits, calls, torch.ones_like(logits))
    assert not linear._forward_hooks
