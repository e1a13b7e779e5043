"""TFB's noise: isotropic in the directions that LoRA has found, and no more than is tolerated."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import backbone, encoded, texts
from torch.testing import assert_close

from bayestune.backbone import Reader
from bayestune.methods.tfb import Options, largest
from bayestune.weights import IsotropicWeights, sites


def make() -> tuple[IsotropicWeights, Reader]:
    model = backbone("llama", adapter={"kind": "lora", "alpha": 6.0})
    weights = model.weights = IsotropicWeights(sites(model.peft_model, "A"))
    return weights, Reader(model, 0)


def products(weights: IsotropicWeights) -> list[torch.Tensor]:
    return [
        (site.layer.lora_B["default"].weight @ site.weight).detach()
        for site in weights.sites.values()
    ]


def test_the_product_stays_and_B_is_orthogonal():
    weights, reader = make()
    data = encoded(texts())
    before, features = products(weights), reader.features(data)
    weights.diagonalise()
    for old, new in zip(before, products(weights), strict=True):
        assert_close(new, old, rtol=1e-5, atol=1e-6)
    assert_close(reader.features(data), features, rtol=1e-4, atol=1e-5)
    for site in weights.sites.values():
        gram = site.layer.lora_B["default"].weight.detach()
        gram = gram.T @ gram
        assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)


def test_noise_on_the_product_is_isotropic_in_the_column_space():
    """Cov(vec ΔW) = σ² I ⊗ U Uᵀ, without the scale s that LoRA multiplies by."""
    weights, _ = make()
    weights.diagonalise()
    weights.get_buffer("sigma").fill_(0.3)
    name, site = next(iter(weights.sites.items()))
    B = site.layer.lora_B["default"].weight.detach()
    noise = B @ weights.deviations(name, range(4000), 1)  # (S, m, n)
    U = B / B.norm(dim=0)
    rows = torch.einsum("smi,sni->mn", noise, noise) / noise.shape[0] / noise.shape[2]
    error = 4 * 0.09 * (2 / (noise.shape[0] * noise.shape[2])) ** 0.5
    assert (rows - 0.09 * U @ U.T).abs().max() < error
    columns = torch.einsum("smi,smj->ij", noise, noise) / noise.shape[0]
    n = columns.shape[0]
    assert (columns - 0.09 * U.shape[1] * torch.eye(n)).abs().max() < 4 * 0.09 * 2 * (
        2 / noise.shape[0]
    ) ** 0.5


def test_a_direction_that_B_does_not_have_carries_no_noise():
    weights, reader = make()
    for site in weights.sites.values():
        with torch.no_grad():
            site.layer.lora_B["default"].weight[:, 1] = 0
    weights.diagonalise()
    weights.get_buffer("sigma").fill_(0.5)
    for name in weights.sites:
        deviation = weights.deviations(name, [0, 1], 0)
        assert torch.isfinite(deviation).all()
        assert (deviation.abs().amax((0, 2)) > 0).tolist() == [True, False]
    for site in weights.sites.values():
        with torch.no_grad():
            site.layer.lora_B["default"].weight.zero_()
    weights.diagonalise()
    assert all(weights.deviations(name, [0], 0).abs().max() == 0 for name in weights.sites)
    assert torch.isfinite(reader.features(encoded(texts()))).all()


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("limit", [1e-4, 0.01, 0.19])
def test_the_search_returns_the_largest_tolerated(limit, power):
    tried = []

    def change(sigma: float) -> float:
        tried.append(sigma)
        return (sigma / limit) ** power * 0.003

    found = largest(change, Options(), lambda: None)
    assert 0.9 ** (1 / power) * limit <= found <= limit
    assert len(tried) <= 4


def test_the_ends_of_the_search():
    assert largest(lambda _: 0.0, Options(), lambda: None) == 0.2
    assert largest(lambda _: 1.0, Options(), lambda: None) == 0.0
