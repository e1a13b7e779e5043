from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bayestune.errors import ModelError
from bayestune.head import GaussianHead, LinearHead, install

K, D = 3, 16
SIZES = {
    "vocab_size": 32,
    "hidden_size": D,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_labels": K,
    "pad_token_id": 0,
    "max_position_embeddings": 40,
}


def model(kind: str = "llama"):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForSequenceClassification(LlamaConfig(**SIZES)).eval()
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**SIZES)).eval()
    return RobertaForSequenceClassification(RobertaConfig(**SIZES)).eval()


def head(cls=GaussianHead, **options):
    return cls(**{"in_features": D, "num_classes": K, "feature_energy": 16.0, **options})


TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.mark.parametrize("cls", [GaussianHead, LinearHead])
@pytest.mark.parametrize(
    ("kind", "place"),
    [("llama", "score"), ("bert", "classifier"), ("roberta", "classifier.out_proj")],
)
def test_the_stock_forward_returns_the_posterior_mean(kind, place, cls):
    net = model(kind)
    expected = net(input_ids=TOKENS).logits
    ours = head(cls)
    assert install(net, ours, keep_mean=True) == place
    assert net.get_submodule(place) is ours
    assert f"{place}.weight" in net.state_dict()
    torch.testing.assert_close(net(input_ids=TOKENS).logits, expected)


def test_without_keep_mean_the_head_keeps_its_own():
    net, ours = model(), head()
    install(net, ours)
    assert torch.equal(net(input_ids=TOKENS).logits, torch.zeros(2, K))


def test_a_half_precision_backbone_feeds_a_full_precision_head():
    net = model().bfloat16()
    install(net, head(), keep_mean=True)
    logits = net(input_ids=TOKENS).logits
    assert logits.dtype == torch.float32
    assert logits.abs().max() > 0


def test_a_head_can_replace_a_head():
    net, first = model(), head()
    install(net, first, keep_mean=True)
    expected = net(input_ids=TOKENS).logits
    install(net, head(LinearHead), keep_mean=True)
    torch.testing.assert_close(net(input_ids=TOKENS).logits, expected)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ModelError, match="num_labels=4"):
        install(model(), head(num_classes=4))
    with pytest.raises(ModelError, match="AutoModelForSequenceClassification"):
        install(model().model, head())
    biased = model("bert")
    with torch.no_grad():
        biased.classifier.bias.fill_(1.0)
    with pytest.raises(ModelError, match="bias"):
        install(biased, head(), keep_mean=True)
    assert isinstance(biased.classifier, torch.nn.Linear)
    install(biased, head())
