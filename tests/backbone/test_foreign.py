"""Backbones from anywhere: no code of theirs is run, and what cannot be is refused in words."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from tiny_bases import byte_bpe

import bayestune as bt
from bayestune.backbone import resolve
from bayestune.errors import ModelError
from bayestune.store import load


@pytest.fixture
def base(llama_base, tmp_path) -> Path:
    return Path(shutil.copytree(llama_base, tmp_path / "base"))


def configure(base: Path, file: str = "config.json", **values: Any) -> None:
    data = json.loads((base / file).read_text())
    (base / file).write_text(json.dumps(data | values))


def build(base: Path) -> bt.BayesModel:
    return bt.build("polar_vbll", base=str(base), labels=["a", "b"], layers="top:1")


def test_code_of_a_backbone_is_not_run_and_nobody_is_asked(base, monkeypatch) -> None:
    ran = base / "ran"
    (base / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    configure(base, model_type="x", auto_map=classes)
    configure(base, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tok", None]})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ModelError, match="base"):
        build(base)
    assert not ran.exists()


@pytest.mark.parametrize(
    "auto", ["AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification"]
)
def test_every_loader_is_told_so(base, monkeypatch, auto) -> None:
    asked: list[Any] = []
    loader = getattr(transformers, auto)
    original = loader.from_pretrained

    def spied(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("trust_remote_code"))
        return original(*arguments, **options)

    monkeypatch.setattr(loader, "from_pretrained", spied)
    build(base)
    assert asked and set(asked) == {False}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 2**31),
        ("vocab_size", 2**62),
        ("intermediate_size", 2**40),
        ("num_attention_heads", 2**31),
        ("num_hidden_layers", -1),
        ("hidden_size", 2**31),
        ("num_labels", 2**31),
        ("vocab_size", "many"),
        ("hidden_act", None),
        ("rope_parameters", []),
    ],
)
@pytest.mark.timeout(60)
def test_a_configuration_of_what_cannot_be_is_refused_at_once(base, key, value) -> None:
    configure(base, **{key: value})
    with pytest.raises(ModelError):
        build(base)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5_000 + b"}"])
def test_a_configuration_without_end_is_refused(base, content) -> None:
    (base / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        resolve(str(base))


def test_a_tokenizers_length_that_is_no_number_is_refused(base) -> None:
    configure(base, "tokenizer_config.json", model_max_length="long")
    with pytest.raises(ModelError, match="model_max_length is 'long', which is no number"):
        build(base)


def test_tokens_that_the_backbone_does_not_know_are_refused(base) -> None:
    tokenizer = byte_bpe()
    tokenizer.add_tokens(["parcel!"])
    tokenizer.save_pretrained(base)
    model = build(base)
    assert model.predict("my parcel").probs.shape == (1, 2)
    with pytest.raises(ModelError, match=r"gives the token \d+, but the backbone knows \d+"):
        model.predict("my parcel!")


def test_one_number_of_the_backbone_where_it_was_trained_is_noticed(
    base, clear, make, tmp_path
) -> None:
    make(base=str(base)).save(tmp_path / "model")
    weights = load_file(base / "model.safetensors")
    tensor = weights["model.layers.2.mlp.up_proj.weight"]
    tensor.view(-1)[5] += 1e-3  # not among those that the weights are known by elsewhere
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"damaged, or with another tokenizer"):
        load(tmp_path / "model")


def test_a_copy_with_another_tokenizer_is_refused(base, llama_base, make, tmp_path) -> None:
    make().save(tmp_path / "model")
    configure(base, architectures=["Other"])
    load(tmp_path / "model", base=str(base))
    tokens = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    a, b = list(vocabulary)[20:22]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (base / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="another tokenizer"):
        load(tmp_path / "model", base=str(base))


@pytest.mark.parametrize("size", [2**31, 2**63, 2**64 - 1])
def test_a_header_of_more_than_the_file_is_refused(base, size) -> None:
    file = base / "model.safetensors"
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    with pytest.raises(ModelError):
        build(base)
