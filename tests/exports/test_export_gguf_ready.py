"""Folders for llama.cpp's converter, by what it reads; the converter itself is not run here."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from export_checks import TEXTS, prompts
from gguf import MODEL_ARCH, get_tensor_name_map
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bayestune.errors import ModelError
from bayestune.exports import export
from bayestune.model import build
from bayestune.store import open_sidecar


@pytest.mark.parametrize("name", ["polar_vbll", "tied", "generative", "number"])
def test_it_is_a_language_model_with_the_adapter_in_it(kind, name, tmp_path, llama_base) -> None:
    model = kind(name)
    folder = export(model, to="gguf-ready", out=tmp_path / "out", check=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "quantization_config" not in config
    tensors = load_file(folder / "model.safetensors")
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    # The converter stops at a tensor that this map of the format's own does not know.
    assert all(names.get_name(key, try_suffixes=(".weight", ".bias")) for key in tensors)
    assert ("lm_head.weight" in tensors) == (name != "tied")
    if name != "tied":
        base = load_file(llama_base / "model.safetensors")
        assert torch.equal(tensors["lm_head.weight"], base["lm_head.weight"])
    assert (folder / "tokenizer.json").is_file()
    # It takes every file that is called so for a part of the model.
    assert [p.name for p in folder.rglob("model*.safetensors")] == ["model.safetensors"]


def test_its_states_and_the_side_car_are_the_model(kind, tmp_path) -> None:
    model = kind("polar_vbll")
    folder = export(model, to="gguf-ready", out=tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [
            stock.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            for text in prompts(model)
        ]
    found, wanted = open_sidecar(folder).predict(torch.stack(rows)), model.predict(TEXTS)
    torch.testing.assert_close(found.probs, wanted.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.epistemic, wanted.epistemic, rtol=1e-3, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "convert_hf_to_gguf.py PATH" in card and "--pooling last" in card


def test_an_encoder_keeps_its_own_architecture(kind, tmp_path) -> None:
    folder = export(kind("encoder"), to="gguf-ready", out=tmp_path / "out", check=True)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    names = get_tensor_name_map(MODEL_ARCH.BERT, 2)
    # Without the pooler, which the converter drops itself.
    kept = [key for key in load_file(folder / "model.safetensors") if "pooler" not in key]
    assert all(names.get_name(key, try_suffixes=(".weight", ".bias")) for key in kept)
    card = (folder / "README.md").read_text()
    assert "--pooling mean" in card and "one segment" in card


def test_a_sentencepiece_vocabulary_goes_along(make, llama_base, tmp_path) -> None:
    base = shutil.copytree(llama_base, tmp_path / "base")
    (base / "tokenizer.model").write_bytes(b"pieces")
    model = make(base=str(base))
    folder = export(model, to="gguf-ready", out=tmp_path / "out")
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"


def test_a_base_without_its_output_layer_is_refused(clear, llama_base, tmp_path) -> None:
    from transformers import AutoModel

    base = tmp_path / "bare"
    AutoModel.from_pretrained(llama_base).save_pretrained(base)
    AutoTokenizer.from_pretrained(llama_base).save_pretrained(base)
    model = build("polar_vbll", base=str(base), labels=clear, rank=2)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        export(model, to="gguf-ready", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
