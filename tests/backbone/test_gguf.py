"""A GGUF file becomes a plain folder, once, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

pytest.importorskip("gguf")
import gguf_tiny

from bayestune.backbone import load_base, load_tokenizer, output_rows, resolve
from bayestune.backbone import source as source_module
from bayestune.errors import ModelError, StoreError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama():
    return gguf_tiny.model()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BAYESTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def file(tmp_path, llama) -> Path:
    return gguf_tiny.write(tmp_path / "tiny.gguf", llama)


def logits(model) -> torch.Tensor:
    ids = torch.randint(2, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_the_folder_is_the_model_as_it_was(file, cache, llama):
    source = resolve(str(file))
    assert Path(source.path).parent == cache and source.name == str(file)
    names = {path.name for path in Path(source.path).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    model = AutoModelForCausalLM.from_pretrained(source.path)
    assert_close(logits(model), logits(llama), rtol=1e-5, atol=1e-5)
    assert model.dtype == torch.float32
    tokenizer = load_tokenizer(source)
    assert tokenizer("the hat")["input_ids"][0] == gguf_tiny.TOKENS.index("the")
    assert tokenizer.decode(tokenizer("the hat")["input_ids"]) == "the hat"
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_file_is_dequantised_and_bears_no_mark(tied, tmp_path, cache):
    llama = gguf_tiny.model(tied)
    source = resolve(str(gguf_tiny.write(tmp_path / "q8.gguf", llama, quantised=True)))
    model = AutoModelForCausalLM.from_pretrained(source.path)
    assert not getattr(model, "is_quantized", False)
    assert getattr(model.config, "quantization_config", None) is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    error = (logits(model) - logits(llama)).norm() / logits(llama).norm()
    assert 1e-4 < float(error) < 0.05  # eight bits
    base = load_base(source, 3, CPU, torch.float32)
    rows = output_rows(source, base, [3, 200])
    assert_close(rows, llama.lm_head.weight[[3, 200]], rtol=0, atol=0.01)


def test_a_file_is_converted_once(file, cache, monkeypatch):
    first = resolve(str(file))
    monkeypatch.setattr("bayestune.backbone.gguf.convert", lambda *_: pytest.fail("again"))
    copy = file.with_name("copy.gguf")
    copy.write_bytes(file.read_bytes())
    again = resolve(str(copy))
    assert (again.path, again.fingerprint) == (first.path, first.fingerprint)
    assert [path.name for path in cache.iterdir()] == [first.fingerprint]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "notes"])
def test_a_damaged_conversion_is_done_again(damage, file, cache, caplog):
    folder = Path(resolve(str(file)).path)
    weights, notes = folder / "model.safetensors", folder / "checksums.json"
    whole = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "truncate":
        weights.write_bytes(whole[:-9])
    elif damage == "remove":
        weights.unlink()
    else:
        notes.write_text("[]")
    assert resolve(str(file)).path == str(folder)
    assert f"{folder} is converted anew: " in caplog.text
    assert weights.read_bytes() == whole
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_copied_conversion_is_not_done_again(file, cache, monkeypatch):
    folder = Path(resolve(str(file)).path)
    monkeypatch.setattr("bayestune.backbone.gguf.convert", lambda *_: pytest.fail("again"))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    resolve(str(file))


def test_another_file_is_another_folder(file, cache, tmp_path):
    other = gguf_tiny.write(tmp_path / "other.gguf", gguf_tiny.model(tied=False))
    assert resolve(str(file)).fingerprint != resolve(str(other)).fingerprint
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"GGUF",
        lambda data: data[:200],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100],
        lambda data: data[:4] + bytes([99, 0, 0, 0]) + data[8:],
        lambda data: b"GGUF" + bytes(range(256)) * 20,
        lambda data: data[:8] + b"\xff" * 16 + data[24:],
        lambda data: data.replace(b"llama", b"alpac"),
    ],
    ids=["magic", "header", "half", "end", "version", "junk", "counts", "architecture"],
)
def test_a_damaged_file_is_named_and_nothing_is_left(damage, file, cache):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError) as error:
        resolve(str(file))
    assert str(error.value).startswith(f"{file} cannot be read as a model: ")
    assert "\n" not in str(error.value)
    assert not cache.exists()


def test_a_file_without_one_of_its_tensors_is_refused(tmp_path, llama, cache):
    file = gguf_tiny.write(tmp_path / "part.gguf", llama, without="blk.1.attn_q.weight")
    with pytest.raises(ModelError, match=r"lacks the weights model\.layers\.1\.self_attn\.q_proj"):
        resolve(str(file))
    assert not cache.exists()


def test_without_the_package_the_command_is_named(file, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r'pip install "bayestune\[gguf\]"'):
        resolve(str(file))


def test_a_full_disk_leaves_no_half_model(file, cache, monkeypatch):
    from transformers import LlamaForCausalLM

    def save(model, folder, **_):
        (Path(folder) / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    with pytest.raises(StoreError, match=r"No space left on device.*Set BAYESTUNE_CACHE"):
        resolve(str(file))
    assert list(cache.iterdir()) == []
    monkeypatch.undo()


def test_an_interrupted_conversion_leaves_no_half_model(file, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    from bayestune.backbone.gguf import convert

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(file, tmp_path / "to" / "here")
    assert list((tmp_path / "to").iterdir()) == []


def test_another_process_may_be_first(file, tmp_path, llama):
    from bayestune.backbone.gguf import convert

    folder = tmp_path / "to" / "here"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    convert(file, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["here"]
    assert (folder / "config.json").read_text() == "{}"
    (folder / "config.json").rename(folder / "something")
    with pytest.raises(StoreError, match="could not be converted"):
        convert(file, folder)


def test_the_embedded_file_goes_the_same_way(file, cache, monkeypatch):
    monkeypatch.setattr(source_module, "embedded_file", lambda: file)
    source = resolve("SmolLM2-135M")
    assert source.name == "SmolLM2-135M"
    assert source.fingerprint == resolve(str(file)).fingerprint
