"""The stack of layers, and which of them a specification means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from backbone_zoo import ZOO, base
from torch import nn
from transformers import GPT2Config, GPT2Model

from bayestune.backbone import layer_stack, parse_layers
from bayestune.backbone.layers import hidden_size
from bayestune.errors import ConfigError, ModelError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", [0, 1, 2, 3, 4]),
        (" ALL ", [0, 1, 2, 3, 4]),
        ("top:1", [4]),
        ("top:5", [0, 1, 2, 3, 4]),
        ("top: 2", [3, 4]),
        ("top:25%", [3, 4]),  # 1.25 rounded up
        ("top:20%", [4]),
        ("top:0.1%", [4]),
        ("top:100%", [0, 1, 2, 3, 4]),
        ("0", [0]),
        ("3, 1,1", [1, 3]),
    ],
)
def test_specifications(spec, expected):
    assert parse_layers(spec, 5) == expected


def test_a_quarter_of_thirty_layers():
    assert parse_layers("top:25%", 30) == list(range(22, 30))
    assert parse_layers("top:10%", 30) == [27, 28, 29]  # an exact share is not rounded up


@pytest.mark.parametrize(
    "spec",
    ["", "top", "top:", "top:0", "top:6", "top:-1", "top:0%", "top:101%", "top:nan%", "top:x%",
     "bottom:2", "5", "-1", "0,5", "0,,1", "1.5", "top:2.5", "0-3"],
)  # fmt: skip
def test_wrong_specifications_name_the_layers_there_are(spec):
    with pytest.raises(ConfigError) as error:
        parse_layers(spec, 5)
    assert str(error.value).startswith(f"adapter.layers is {spec!r}; expected all, top:N, top:N%")
    assert "5 layers (0 to 4)" in str(error.value)


NAMES = {"bert": "encoder.layer", "distilbert": "transformer.layer", "bloom": "h", "gpt_neo": "h",
         "opt": "decoder.layers", **dict.fromkeys(("roberta", "electra", "deberta"),
         "encoder.layer")}  # fmt: skip


@pytest.mark.parametrize("kind", list(ZOO))
def test_the_stack_of_every_architecture(kind):
    name, layers = layer_stack(base(kind).transformer)
    assert (name, len(layers)) == (NAMES.get(kind, "layers"), 4)


class Layer(nn.Module):
    """A layer with more experts than the model has layers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(16))


def test_a_list_within_the_layers_is_not_the_stack():
    model = nn.Module()
    model.blocks = nn.ModuleList(Layer() for _ in range(3))
    assert layer_stack(model) == ("blocks", model.blocks)


def test_the_longest_list_wins_and_the_outer_of_two():
    model = nn.Module()
    model.short = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    model.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(9))
    model.inner = nn.Module()
    model.inner.long = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert layer_stack(model)[0] == "inner.long"
    model.long = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert layer_stack(model)[0] == "long"


def test_layers_without_linear_modules_are_none():
    model = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(ModelError, match="GPT2Model has no list of alike layers with linear"):
        layer_stack(model)


def test_the_width_is_that_of_the_text_model():
    text = SimpleNamespace(hidden_size=7)
    assert hidden_size(text) == 7
    assert hidden_size(SimpleNamespace(hidden_size=9, get_text_config=lambda: text)) == 7
    with pytest.raises(ModelError, match="does not name a hidden_size"):
        hidden_size(SimpleNamespace())
