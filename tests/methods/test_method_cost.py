"""Costs are counted, and the counts are the arithmetic of the papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bayestune import methods
from bayestune.backbone import resolve
from bayestune.backbone.source import Source
from bayestune.config import parse_overrides
from bayestune.methods.cost import Cost, cost

#: Llama-2-7B: query and value projections 4096 x 4096 in 32 layers.
LAYERS, WIDTH, RANK, CLASSES = 32, 4096, 8, 4
SITES = 2 * LAYERS
LORA = SITES * RANK * 2 * WIDTH


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Source:
    folder: Path = tmp_path_factory.mktemp("seven")
    config = {
        **{"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 11008},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 32, "vocab_size": 32000},
        "architectures": ["LlamaForCausalLM"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Source(name="seven", path=str(folder), revision=None, fingerprint="")


def counted(name: str, source: Source) -> Cost:
    given = parse_overrides(["adapter.layers=all", f"adapter.rank={RANK}"])
    return cost(methods.get(name), methods.recipe(name, given), source, CLASSES)


def test_lora_at_seven_billion(seven):
    assert LORA == 4_194_304
    assert counted("mle", seven) == Cost(LORA + CLASSES * WIDTH, 0, "1")


@pytest.mark.parametrize(
    ("name", "trained", "stored"),
    [
        ("map", 0, 0),
        ("temperature", 0, 0),
        ("mc_dropout", 0, 0),
        # deviations, eigenvectors of both factors
        ("last_layer_laplace", 0, CLASSES * WIDTH + WIDTH**2 + CLASSES**2),
        ("blob", SITES * RANK * WIDTH, SITES * RANK * WIDTH),  # + 48 % of LoRA with lm_head
        ("scalabl", 2 * RANK * SITES, 2 * RANK * SITES + 1),  # 2r a layer, and whether folded
        ("tfb", 0, SITES * RANK + 1),  # 1/d, and σ_q
        ("polar_mle", SITES * RANK**2, 0),  # r² a layer: 4,096 for 64
        ("polar_blob", 2 * SITES * RANK**2, SITES * RANK**2),
        ("lora_vbll", CLASSES * WIDTH, 2 * CLASSES * WIDTH),  # deviations, and the prior's mean
        ("ensemble", 0, 5 * (LORA + CLASSES * WIDTH)),
    ],
)
def test_numbers_beside_lora(seven, name, trained, stored):
    found = counted(name, seven)
    assert found.trained - (LORA + CLASSES * WIDTH) == trained
    assert found.stored == stored


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_the_count_is_that_of_the_model_itself(name, make, llama_base):
    model = make(name)
    found = cost(model.method, model.recipe, resolve(str(llama_base)), 3)
    own = {id(p): p for part in (model.backbone, model.head) for p in part.parameters()}
    assert found.trained == sum(p.numel() for p in own.values() if p.requires_grad)
    weights = model.backbone.weights
    kept = 0 if weights is None else sum(t.numel() for t in weights.tensors().values())
    assert found.stored >= kept
    assert all(not p.is_meta for p in own.values())
