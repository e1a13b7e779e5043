"""The adapter report against singular value decompositions of the dense update."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_tiny import adapted, tiny

from bayestune.peft import PolarConfig, adapter_report

pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers for the old name of this property.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

POLAR = PolarConfig(r=4, alpha=6.0, target_modules=["q_proj", "down_proj"])
LORA = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])


def randomised(config, scale: float = 1.0) -> torch.nn.Module:
    model = get_peft_model(tiny(), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("config", [POLAR, LORA])
def test_rank_and_norm_are_those_of_the_dense_update(config) -> None:
    model = randomised(config)
    rows = adapter_report(model)
    layers = dict(adapted(model))
    assert [row.layer for row in rows] == list(layers)
    for row in rows:
        dense = layers[row.layer].get_delta_weight("default").detach().double()
        sigma = torch.linalg.svdvals(dense)
        torch.testing.assert_close(row.norm, float(sigma.norm()), rtol=1e-6, atol=0)
        expected = float(sigma.square().sum() / sigma[0].square())
        torch.testing.assert_close(row.stable_rank, expected, rtol=1e-6, atol=0)
        assert 1 < row.stable_rank < 4
        assert row.adapter == "default"


def test_orthogonality_is_measured_for_polar_and_zero_for_lora() -> None:
    for row in adapter_report(get_peft_model(tiny(), POLAR)):
        assert (row.stable_rank, row.norm) == (0.0, 0.0)
        assert 0 < row.orthogonality_X < 1e-6
        assert 0 < row.orthogonality_Y < 1e-6
    model = randomised(POLAR)
    layers = dict(adapted(model))
    eye = torch.eye(4)
    for row in adapter_report(model):
        layer = layers[row.layer]
        X, Y = (getattr(layer, n)["default"].detach() for n in ("polar_X", "polar_Y"))
        assert row.orthogonality_X == pytest.approx(float((X.T @ X - eye).norm()), rel=1e-5)
        assert row.orthogonality_Y == pytest.approx(float((Y.T @ Y - eye).norm()), rel=1e-5)
    for row in adapter_report(randomised(LORA)):
        assert (row.orthogonality_X, row.orthogonality_Y) == (0.0, 0.0)


def test_on_the_manifold_the_rank_is_that_of_the_core() -> None:
    model = get_peft_model(tiny(), POLAR)
    core = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    for _, layer in adapted(model):
        layer.polar_theta["default"].data.copy_(core)
    for row in adapter_report(model):
        assert row.stable_rank == pytest.approx(6 / 4, rel=1e-5)
        assert row.norm == pytest.approx(1.5 * 6**0.5, rel=1e-5)


def test_unadapted_models_have_no_rows() -> None:
    assert adapter_report(tiny()) == []
