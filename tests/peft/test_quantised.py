"""Quantised base layers: PEFT's backend interface with a stand-in, and quantisers that run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, QuantizationBackend
from peft_tiny import adapted, inputs, logits, tiny
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    TorchAoConfig,
)

from bayestune.backbone import quantise
from bayestune.data import Task
from bayestune.errors import ConfigError, ModelError
from bayestune.exports import export
from bayestune.peft import ContextualLoraConfig, PolarConfig, additive, targets
from bayestune.progress import silent
from bayestune.store import load, save
from bayestune.training import fit

pytestmark = pytest.mark.filterwarnings(
    # PEFT does not know the stand-in's class and says so.
    "ignore:Unsupported layer type .*Grid:UserWarning"
)

STEP = 1 / 64


class Grid(nn.Module):
    """A linear layer whose weight is integer codes times a step."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        codes = torch.randint(-30, 30, (out_features, in_features), dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * STEP)


class GridBackend(QuantizationBackend):
    supports_merge = True
    backend_name = "grid"
    layer_type = "linear"
    clones = 0

    def get_base_weight(self, base_layer: Any) -> Tensor:
        return base_layer.weight * STEP

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        codes = (weight_data / STEP).round().to(torch.int8)
        peft_layer.get_base_layer().weight.data = codes

    def maybe_clone_base_result(self, x: Tensor) -> Tensor:
        GridBackend.clones += 1
        return x.clone()


def adapt(monkeypatch: pytest.MonkeyPatch, backend: QuantizationBackend | None) -> Any:
    def resolve(layer: nn.Module, **_: Any) -> QuantizationBackend | None:
        return backend if isinstance(layer, Grid) else None

    for place in (additive, targets):
        monkeypatch.setattr(place, "resolve_quantization_backend", resolve)
    torch.manual_seed(0)
    model = nn.Sequential(Grid(8, 6), nn.Tanh(), Grid(6, 4))
    model = get_peft_model(model, PolarConfig(r=2, target_modules=["0", "2"]))
    for layer in (model.base_model.model[0], model.base_model.model[2]):
        layer.polar_theta["default"].data.normal_(std=0.1)
    return model


def test_merges_by_quantising_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt(monkeypatch, GridBackend())
    x = torch.randn(5, 8)
    layer = model.base_model.model[0]
    codes = layer.weight.clone()
    GridBackend.clones = 0
    expected = layer(x).detach()
    assert GridBackend.clones == 1
    dense = codes * STEP + layer.get_delta_weight("default").detach()
    torch.testing.assert_close(expected, F.linear(x, dense))
    model.merge_adapter()
    assert layer.weight.dtype == torch.int8
    # Each weight is off by half a step at most.
    assert ((layer(x) - expected).abs() <= STEP / 2 * x.abs().sum(-1, keepdim=True) + 1e-6).all()
    model.unmerge_adapter()
    assert not model.base_model.model[0].merged
    assert (layer.weight - codes).abs().max() <= 1
    assert "grid" in repr(layer)


def test_forward_only_backends_train_but_do_not_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt(monkeypatch, ForwardOnlyQuantizationBackend("grid"))
    model(torch.randn(5, 8)).sum().backward()
    assert model.base_model.model[0].polar_theta["default"].grad.any()
    with pytest.raises(TypeError, match="not supported for grid"):
        model.merge_adapter()


def test_a_layer_without_a_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="'0' is a Grid, but only linear layers"):
        adapt(monkeypatch, None)


def quantiser(name: str) -> Any:
    """transformers' settings of a real quantiser, where it is installed."""
    if name.startswith("torchao"):
        config = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
        return TorchAoConfig(config)
    pytest.importorskip("bitsandbytes")
    if name == "bitsandbytes 4 bits":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.filterwarnings("ignore")  # of the quantisers, about precisions and kernels
@pytest.mark.parametrize("config", [PolarConfig, ContextualLoraConfig])
@pytest.mark.parametrize("name", ["bitsandbytes 8 bits", "bitsandbytes 4 bits", "torchao 8 bits"])
def test_a_quantised_transformer_is_adapted_trained_and_loaded(
    name: str, config: type, tmp_path: Path
) -> None:
    settings = quantiser(name)
    tiny(width=128).save_pretrained(tmp_path / "base")

    def base() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=3, quantization_config=settings, device_map="cpu"
        )

    plain = base()
    before = logits(plain)
    model = get_peft_model(plain, config(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    torch.testing.assert_close(logits(model), before)
    assert len(list(adapted(model))) == 2 * 7
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.Adam(trained, lr=0.01)
    losses = []
    for _ in range(4):
        loss = model(**inputs(), labels=torch.tensor([0, 1, 2])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    after = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base(), tmp_path / "adapter")), after
    )
    if config is ContextualLoraConfig:
        return
    _, layer = next(adapted(model))
    exact = layer.get_base_weight().float() + layer.get_delta_weight("default").detach()
    model.merge_adapter()
    error = (layer.get_base_weight().float() - exact).abs().max() / exact.abs().max()
    # Half the largest step of four normal bits is 0.152 of a block's largest weight.
    assert 0 < error < (0.16 if "4" in name else 0.005)


@pytest.mark.filterwarnings("ignore")  # of the quantisers, about precisions and kernels
@pytest.mark.parametrize("method", ["polar_vbll", "blob", "laplace_lora"])
@pytest.mark.parametrize("name", ["bitsandbytes 8 bits", "bitsandbytes 4 bits", "torchao 8 bits"])
def test_methods_train_and_load_on_a_quantised_backbone(
    name: str, method: str, llama_base: Path, make: Any, clear: Task, tmp_path: Path
) -> None:
    settings = quantiser(name)
    base = AutoModelForCausalLM.from_pretrained(
        llama_base, quantization_config=settings, device_map="cpu"
    )
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(llama_base).save_pretrained(tmp_path / "base")
    wide = {"weights": {"init_std": 0.3}} if method == "blob" else {}
    model = make(method, base=str(tmp_path / "base"), epochs=1, **wide)
    fit(model, clear, progress=silent)
    start = "polar_theta" if method == "polar_vbll" else "lora_B"
    moved = [p for n, p in model.backbone.named_parameters() if start in n]
    assert moved and all(p.abs().max() > 1e-3 for p in moved), "they start at 0"
    found = model.predict(["the new tax law"])
    assert found.epistemic.item() > 0
    again = load(save(model, tmp_path / "run")).predict(["the new tax law"])
    torch.testing.assert_close(again.probs, found.probs)


@pytest.mark.filterwarnings("ignore")  # of the quantisers, about precisions and kernels
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_backbone_is_quantised_as_it_is_loaded(
    kind: str, llama_base: Path, make: Any, clear: Task, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    wide = AutoConfig.from_pretrained(
        llama_base, hidden_size=128, head_dim=32, intermediate_size=128
    )
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(llama_base).save_pretrained(tmp_path / "wide")
    model = make(base=str(tmp_path / "wide"), quantize=kind, epochs=1)
    layers = [m for m in model.backbone.layers.modules() if isinstance(m, nn.Linear)]
    frozen = [m.weight for m in layers if not m.weight.requires_grad]
    assert frozen and not any(weight.is_floating_point() for weight in frozen)
    fit(model, clear, progress=silent)
    found = model.predict(["the new tax law"])
    run = save(model, tmp_path / "run")
    torch.testing.assert_close(load(run).predict(["the new tax law"]).probs, found.probs)
    export(model, to="lora", out=tmp_path / "lora", check=True)
    with pytest.raises(ModelError, match="is quantised"):
        export(model, to="merged", out=tmp_path / "merged")
    model.backbone.transformer.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(model.source.path).save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match="is quantised already"):
        make(quantize=kind, base=str(tmp_path / "base"))


def test_quantising_needs_its_library(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"quantize=nf4 needs bitsandbytes.*pip install"):
        make(quantize="nf4")
    with pytest.raises(ConfigError, match="quantize"):
        make(quantize="nf5")
