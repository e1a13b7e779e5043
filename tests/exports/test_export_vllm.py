"""Adapters under the names that vLLM reads, and the side-car that makes predictions of states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_checks import TEXTS, described
from safetensors.torch import load_file, save_file

from bayestune.errors import ModelError, StoreError
from bayestune.exports import export, vllm
from bayestune.store import open_sidecar


@pytest.mark.parametrize("name", ["polar_vbll", "ordinal", "generative", "pooled"])
def test_adapters_have_the_names_of_a_causal_model(kind, name, tmp_path) -> None:
    """vLLM 0.33 takes A and B by these names, a full ``score`` under --convert classify alone."""
    folder = export(kind(name), to="vllm", out=tmp_path / "out", check=True)
    tensors = load_file(folder / "embed" / "adapter_model.safetensors")
    start = "base_model.model.model.layers."
    assert tensors and all(
        key.startswith(start) and key.endswith(("lora_A.weight", "lora_B.weight"))
        for key in tensors
    )
    settings = json.loads((folder / "embed" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] is None
    classify = folder / "classify"
    assert classify.is_dir() == (name == "polar_vbll")
    if name == "polar_vbll":
        whole = load_file(classify / "adapter_model.safetensors")
        assert set(whole) - set(tensors) == {"base_model.model.score.weight"}
        assert all(torch.equal(whole[key], value) for key, value in tensors.items())
        settings = json.loads((classify / "adapter_config.json").read_text())
        assert settings["modules_to_save"] == ["classifier", "score"]


@pytest.mark.parametrize(
    "name",
    ["polar_vbll", "trained", "mle", "ordinal", "generative", "pooled", "number", "spread"],
)
def test_the_side_car_predicts_what_the_model_does(kind, name, tmp_path) -> None:
    model = kind(name)
    folder = export(model, to="vllm", out=tmp_path / "out")
    readout, wanted = open_sidecar(folder), model.predict(TEXTS)
    found = readout.predict(model.features(TEXTS))
    assert type(found) is type(wanted)
    for field, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, field), value), field
    if name == "polar_vbll":
        assert found.labels == wanted.labels and wanted.epistemic.min() > 1e-6
        assert torch.equal(
            open_sidecar(folder / "posterior").predict(model.features(TEXTS)).probs, wanted.probs
        )


def test_the_side_car_leaves_out_choices_that_are_not_there(kind, choice, tmp_path) -> None:
    model = kind("choice")
    folder = export(model, to="vllm", out=tmp_path / "out")
    rows = choice.select(range(6))
    mask = model.mask(rows)
    assert mask is not None and not mask.all()
    found = open_sidecar(folder).predict(model.features(rows), mask)
    assert torch.equal(found.probs, model.predict(rows).probs)


@pytest.mark.parametrize("name", ["polar_vbll", "choice", "number", "pooled"])
def test_the_side_car_reads_as_the_model_does(kind, choice, numbers, name, tmp_path) -> None:
    model = kind(name)
    folder = export(model, to="vllm", out=tmp_path / "out")
    reads = open_sidecar(folder).preprocessor
    given: Any = {"choice": choice.select(range(6)), "number": numbers.select(range(6))}.get(name)
    given = [*TEXTS, "find my parcel " * 300, "çedilla ☃ <s>"] if given is None else given
    task = model.read(given)
    assert reads.read(given).examples == task.examples
    assert reads.tokenize(task) == model.tokenize(task)
    assert reads.max_length == model.max_length
    mask, wanted = reads.mask(task), model.mask(task)
    assert (mask is None and wanted is None) or torch.equal(mask, wanted)


def test_the_probe_is_what_the_exported_adapter_makes_of_it(kind, tmp_path) -> None:
    """By stock PEFT, at the mean and at a draw."""
    for name, samples in (("polar_vbll", None), ("blob", 2)):
        model = kind(name)
        folder = export(model, to="vllm", out=tmp_path / name, samples=samples)
        places = [folder] if samples is None else [folder / f"sample-{s}" for s in range(samples)]
        for place in places:
            known = open_sidecar(place).probe
            with torch.no_grad():
                out = vllm.reload(model, place).eval()(input_ids=torch.tensor([known.ids]))
            if hasattr(out, "logits"):
                found, known_logits = out.logits[0], known.state @ _score(place).T
                torch.testing.assert_close(found, known_logits, rtol=1e-3, atol=1e-4)
            else:
                torch.testing.assert_close(
                    out.last_hidden_state[0, -1], known.state, rtol=1e-3, atol=1e-4
                )
        states = [open_sidecar(place).probe.state for place in places]
        assert samples is None or not torch.allclose(*states, rtol=1e-3)


def _score(place: Path) -> torch.Tensor:
    tensors = load_file(place / "classify" / "adapter_model.safetensors")
    return tensors["base_model.model.score.weight"]


def test_several_draws_have_several_side_cars(kind, tmp_path) -> None:
    folder = export(kind("blob"), to="vllm", out=tmp_path / "out", samples=2)
    with pytest.raises(StoreError, match=r"several draws; open one of them, such as .*sample-0"):
        open_sidecar(folder)


def test_a_changed_tokenizer_is_refused(kind, tmp_path) -> None:
    folder = export(kind("polar_vbll"), to="vllm", out=tmp_path / "out")
    file = folder / "posterior" / "tokenizer.json"
    file.write_text(file.read_text().replace("parcel", "pardel"))
    with pytest.raises(StoreError, match=r"tokenizer\.json is damaged or was changed"):
        open_sidecar(folder)


def test_the_card_says_how_it_is_served(kind, tmp_path) -> None:
    one = export(kind("polar_vbll"), to="vllm", out=tmp_path / "one")
    card = (one / "README.md").read_text()
    for words in (
        "--max-lora-rank 8",
        "--convert embed",
        '{"seq_pooling_type": "LAST"}',
        "--lora-modules bayes=PATH/embed",
        "--max-lora-cls-labels 3",
        "BAYESTUNE_SIDECARS=bayes=PATH vllm serve ",
        "--io-processor-plugin bayestune",
        "--dtype float32",
        'VllmClient("http://localhost:8000", "PATH")',
        '{"model": "bayes", "data": {"inputs": ["a text"]}}',
    ):
        assert words in card
    some = export(kind("blob"), to="vllm", out=tmp_path / "some", samples=2)
    card = (some / "README.md").read_text()
    assert "bayes-0=PATH/sample-0/classify bayes-1=PATH/sample-1/classify" in card
    assert "probabilities are averaged" in card and "--max-loras 2" in card
    assert "io-processor-plugin" not in card and "not for draws" in card
    card = (export(kind("pooled"), to="vllm", out=tmp_path / "mean") / "README.md").read_text()
    assert '{"seq_pooling_type": "MEAN"}' in card and "--convert classify" not in card


def test_a_draw_carries_its_own_head(kind, tmp_path) -> None:
    folder = export(kind("swag"), to="vllm", out=tmp_path / "out", samples=2)
    heads = [open_sidecar(folder / f"sample-{s}").readout.head.weight for s in range(2)]
    assert not torch.equal(*heads)
    tensors = load_file(folder / "sample-1" / "classify" / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.score.weight"], heads[1])
    assert not [
        k
        for k in load_file(folder / "sample-0/posterior/posterior.safetensors")
        if k.startswith("weights.")
    ]


def test_encoders_are_refused(kind, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"is an encoder\. Export --to merged"):
        export(kind("encoder"), to="vllm", out=tmp_path / "out")


def test_a_damaged_side_car_is_refused(kind, tmp_path) -> None:
    folder = export(kind("polar_vbll"), to="vllm", out=tmp_path / "out")
    file = folder / "posterior" / "posterior.safetensors"
    tensors = load_file(file)
    tensors["score.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(StoreError, match="checksum is not the recorded one"):
        open_sidecar(folder)
    file.unlink()
    with pytest.raises(StoreError, match="is missing"):
        open_sidecar(folder)
    with pytest.raises(StoreError, match=r"bayestune\.json is missing"):
        open_sidecar(tmp_path)
    assert described(folder)["form"] == "vllm"
