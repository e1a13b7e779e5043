"""PoLAR: the contract of an adapter, and what is particular to orthonormal factors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from contract import AdditiveContract
from peft import PeftConfig, get_peft_model
from peft_tiny import adapted, inputs, tiny
from torch import Tensor, nn

from bayestune.errors import ConfigError, ModelError
from bayestune.geometry.stiefel import orthogonality_error
from bayestune.peft import PolarConfig, PolarLinear

pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers for the old name of this property.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


class TestPolar(AdditiveContract):
    def make_config(self, **settings: Any) -> PeftConfig:
        return PolarConfig(**{"r": 4, "alpha": 6.0, **settings})

    def dense_delta(self, layer: Any, adapter: str) -> Tensor:
        X, theta, Y = (getattr(layer, f"polar_{n}")[adapter].detach() for n in ("X", "theta", "Y"))
        return (6.0 / 4) * torch.einsum("oa,ab,ib->oi", X, theta, Y)

    def disturb(self, layer: Any, adapter: str, generator: torch.Generator) -> None:
        theta = layer.polar_theta[adapter]
        theta.copy_(torch.randn(theta.shape, generator=generator, dtype=torch.float64))


def polar_linear(base: nn.Linear, **settings: Any) -> PolarLinear:
    return PolarLinear(base, "default", PolarConfig(**settings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_factors_start_orthonormal_whatever_the_base(dtype: torch.dtype) -> None:
    layer = polar_linear(nn.Linear(40, 24, dtype=dtype), r=8)
    X, Y = layer.polar_X["default"], layer.polar_Y["default"]
    assert X.shape == (24, 8)
    assert Y.shape == (40, 8)
    assert not layer.polar_theta["default"].any()
    for factor in (X, Y):
        assert factor.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert orthogonality_error(factor) < (1e-14 if dtype == torch.float64 else 1e-6)


def test_bfloat16_model_keeps_orthonormal_factors_through_peft() -> None:
    model = get_peft_model(
        tiny(dtype=torch.bfloat16), PolarConfig(r=8, target_modules=["q_proj", "v_proj"])
    )
    for _, layer in adapted(model):
        assert layer.manifolds == {
            "polar_X": "stiefel",
            "polar_theta": "core",
            "polar_Y": "stiefel",
        }
        for name in ("polar_X", "polar_Y"):
            assert orthogonality_error(getattr(layer, name)["default"]) < 1e-6


def test_at_zero_only_the_core_has_a_gradient() -> None:
    layer = polar_linear(nn.Linear(12, 10), r=3)
    layer(torch.randn(5, 12, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert not layer.polar_X["default"].grad.any()
    assert not layer.polar_Y["default"].grad.any()
    assert layer.polar_theta["default"].grad.abs().min() > 0


def test_gradients_are_those_of_the_dense_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(12, 10, dtype=torch.float64)
    layer = polar_linear(base, r=3, alpha=5.0)
    x = torch.randn(2, 7, 12, generator=generator, dtype=torch.float64)
    names = ("polar_X", "polar_theta", "polar_Y")
    layer.polar_theta["default"].data.normal_(generator=generator)
    X, theta, Y = (getattr(layer, n)["default"].detach().clone().requires_grad_() for n in names)
    layer(x).sin().sum().backward()
    W = base.weight.detach() + 5.0 / 3 * X @ theta @ Y.T
    torch.einsum("btn,mn->btm", x, W).add(base.bias.detach()).sin().sum().backward()
    for name, reference in zip(names, (X, theta, Y), strict=True):
        torch.testing.assert_close(getattr(layer, name)["default"].grad, reference.grad)


def test_dropout_touches_the_adapter_only_and_only_in_training() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = polar_linear(nn.Linear(6, 5, dtype=torch.float64), r=2, dropout=0.25)
    layer.polar_theta["default"].data.normal_(generator=generator)
    x = torch.randn(6, generator=generator, dtype=torch.float64)
    mean = layer.eval()(x)
    torch.testing.assert_close(mean, layer.base_layer(x) + layer.get_delta_weight("default") @ x)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        draws = layer.train()(x.expand(20_000, 6))
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - mean).abs() < 4 * error).all()
    layer.polar_theta["default"].data.zero_()
    torch.testing.assert_close(layer.train()(x), layer.base_layer(x))


def test_autocast_gives_the_precision_of_the_base_layer() -> None:
    layer = polar_linear(nn.Linear(6, 5), r=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(6)).dtype == torch.bfloat16


def test_default_targets_are_query_and_value() -> None:
    model = get_peft_model(tiny(), PolarConfig())
    assert {name.rpartition(".")[2] for name, _ in adapted(model)} == {"q_proj", "v_proj"}


def test_rank_above_a_layer_is_refused_by_name() -> None:
    base = tiny()
    said = r"r=17 is larger than layer 'model.layers.0.self_attn.v_proj'.*16 outputs.*r ≤ 16"
    with pytest.raises(ModelError, match=said):
        get_peft_model(base, PolarConfig(r=17, target_modules=["q_proj", "v_proj"]))
    assert not list(adapted(base))
    with pytest.raises(ModelError, match="r=5 does not fit a layer with 4 inputs and 9 outputs"):
        polar_linear(nn.Linear(4, 9), r=5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"r": 2.0}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"alpha": 0}, "alpha must be a positive finite number, got 0"),
        ({"alpha": float("inf")}, "alpha must be"),
        ({"alpha": "8"}, "alpha must be"),
        ({"dropout": 1.0}, r"dropout must lie in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must lie"),
        ({"init": "orthogonl"}, "init 'orthogonl' is unknown. Did you mean 'orthogonal'?"),
        ({"layers_to_transform": [0, -1]}, "layer indices from 0 on, got [0, -1]"),
        ({"layers_to_transform": ["0"]}, "layer indices from 0 on"),
        ({"target_modules": ".*q", "layers_to_transform": 0}, "the regular expression '.*q'"),
        ({"target_modules": ".*q", "layers_pattern": "layers"}, "the regular expression '.*q'"),
    ],
)
def test_config_names_what_is_wrong(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        PolarConfig(**settings)


def test_a_training_step_keeps_the_base_frozen() -> None:
    model = get_peft_model(tiny(), PolarConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        loss = model(**inputs(), labels=torch.tensor([0, 1, 2])).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
