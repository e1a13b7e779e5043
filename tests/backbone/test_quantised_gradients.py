"""Quantised layers with other kernels in evaluation mode, as those of bitsandbytes on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayestune.data import Task
from bayestune.errors import ModelError
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.training import fit

library = torch.library.Library("bayestune_tests", "DEF")
library.define("product(Tensor x, Tensor weight) -> Tensor")
library.impl("product", lambda x, weight: F.linear(x, weight), "CPU")


class Codes(nn.Linear):
    """Integer codes times a step; without gradients where ``fast`` says so."""

    def __init__(self, layer: nn.Linear, fast: Callable[[nn.Module], bool]) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.step, self.fast = layer.weight.detach().abs().max() / 127, fast
        codes = (layer.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.step
        if self.fast(self):
            return torch.ops.bayestune_tests.product(x, weight)
        return F.linear(x, weight)


def quantised(model: BayesModel, fast: Callable[[nn.Module], bool]) -> BayesModel:
    """Put such a layer behind the adapters of the last layer."""
    layer = model.backbone.layers[-1].self_attn
    layer.o_proj = Codes(layer.o_proj, fast).eval()
    model.backbone.train(False)
    return model


def in_evaluation(layer: nn.Module) -> bool:
    return not layer.training


def ranks(model: BayesModel) -> list[float]:
    named = model.backbone.named_parameters()
    return [float(p.detach().norm()) for name, p in named if "lora_B" in name]


@pytest.mark.parametrize("method", ["mle", "laplace_lora"])
def test_adapters_below_are_trained(make, clear: Task, method: str) -> None:
    model = quantised(make(method, epochs=1, weights={}), in_evaluation)
    done = fit(model, clear, progress=silent)
    assert all(norm > 0.01 for norm in ranks(model)), "they start at 0"
    if method == "laplace_lora":
        assert done.chosen["weights"]["log_evidence"] < 0
        assert model.predict(["the new tax law"]).epistemic.item() > 1e-6


@pytest.mark.parametrize("method", ["mle", "blob", "polar_vbll"])
def test_kernels_without_gradients_are_refused(make, clear: Task, method: str) -> None:
    model = quantised(make(method, epochs=1), lambda _: True)
    with pytest.raises(ModelError, match=r"Gradients stop at bayestune_tests::product.*quantised"):
        fit(model, clear, progress=silent)
