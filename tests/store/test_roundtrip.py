"""What is saved is loaded, bit by bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bayestune
from bayestune.backbone import Source
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.store import load, save

KINDS = ["diagonal", "dense", "point", "refreshed point", "choice", "encoder", "point encoder"]
KINDS += ["generative", "generative choice", "ordinal"]


def rows_of(model: BayesModel, request) -> object:
    if model.task.kind == "choice":
        return request.getfixturevalue("choice")
    if isinstance(model.labels.values[0], int):
        return request.getfixturevalue("levels")
    if model.task.fields.text2:
        return request.getfixturevalue("pairs")
    return request.getfixturevalue("clear_test")


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_the_saved_one_to_the_last_bit(saved_kind, request, kind) -> None:
    model, out = saved_kind(kind)
    torch.rand(3)  # loading does not depend on the state of the generator
    loaded = load(out)
    assert type(loaded.head) is type(model.head)
    assert (
        loaded.head.family
        == model.head.family
        == {
            "dense": "dense",
            "refreshed point": "dense",
            "point": "point",
            "point encoder": "point",
        }.get(kind, model.head.family)
    )
    ours, theirs = model.head.state_dict(), loaded.head.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.endswith("log_scale") and name.replace("log_scale", "factor") in ours:
            continue  # read off the factor again
        same(theirs[name], tensor)
    expected = {n: p for n, p in model.backbone.named_parameters() if "modules_to_save" not in n}
    found = dict(loaded.backbone.named_parameters())
    for name, parameter in expected.items():
        same(found[name], parameter)
    assert (model.density is None) == kind.startswith("generative")
    for name in ("means", "whitening", "present") if model.density is not None else ():
        same(getattr(loaded.density, name), getattr(model.density, name))

    texts = rows_of(model, request)
    same(loaded.features(texts), model.features(texts))
    before, after = model.predict(texts), loaded.predict(texts)
    for name in ("probs", "entropy", "aleatoric", "epistemic", "ood_score"):
        same(getattr(after, name), getattr(before, name))
    assert before.epistemic.any() or "point" in kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_a_model_comes_back_too(saved_kind, kind) -> None:
    model, out = saved_kind(kind)
    loaded = bayestune.load(str(out / "model"))
    assert loaded.method is model.method
    assert loaded.recipe == model.recipe
    assert loaded.task.schema() == model.task.schema()
    assert loaded.source == model.source
    assert loaded.notes == json.loads(json.dumps(model.notes))
    assert loaded.backbone.pooling == model.backbone.pooling


def test_a_second_generation_has_the_same_files(saved_kind, tmp_path) -> None:
    for kind in ("diagonal", "point", "encoder"):
        _, out = saved_kind(kind)
        again = save(load(out), tmp_path / kind)
        assert again == tmp_path / kind
        names = {f.name for f in again.iterdir()}
        assert names == {f.name for f in (out / "model").iterdir()}
        for name in names:
            assert (again / name).read_bytes() == (out / "model" / name).read_bytes(), name


def test_an_untrained_model_is_saved_and_loaded(make, tmp_path) -> None:
    model = make()
    model.save(tmp_path / "new")
    loaded = load(tmp_path / "new")
    assert loaded.density is None and loaded.notes == {}
    texts = ["find my parcel"]
    same(loaded.predict(texts).probs, model.predict(texts).probs)


def test_the_backbone_may_have_moved(saved_kind, llama_base, tmp_path) -> None:
    model, out = saved_kind("diagonal")
    moved = shutil.copytree(llama_base, tmp_path / "elsewhere")
    loaded = load(out, base=str(moved), device="cpu")
    assert loaded.source.path == str(moved)
    same(loaded.features(["login"]), model.features(["login"]))


def test_the_same_backbone_in_other_files_is_the_same(saved_kind, llama_base, tmp_path) -> None:
    model, out = saved_kind("diagonal")
    other = shutil.copytree(llama_base, tmp_path / "cut")
    stored = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    names = sorted(stored)
    cuts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in cuts.items():
        save_file({name: stored[name] for name in part}, other / file, {"format": "pt"})
    index = {name: file for file, part in cuts.items() for name in part}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (other / "model.safetensors.index.json").write_text(text)
    loaded = load(out, base=str(other))
    assert loaded.source.fingerprint != model.source.fingerprint
    same(loaded.predict(["login"]).probs, model.predict(["login"]).probs)


def test_a_hub_model_is_loaded_at_the_commit_it_was_trained_on(
    make, llama_base, tmp_path, monkeypatch
) -> None:
    model = make()
    commit = "0123456789abcdef0123456789abcdef01234567"
    model.source = replace(model.source, name="org/name", revision=commit, fingerprint="x@0")
    model.recipe = replace(model.recipe, model="org/name")
    model.save(tmp_path / "m")
    asked = []

    def resolve(name: str, revision: str | None) -> Source:
        asked.append((name, revision))
        return Source(str(llama_base), str(llama_base), None, "x@0")

    monkeypatch.setattr("bayestune.store.model.resolve", resolve)
    load(tmp_path / "m")
    load(tmp_path / "m", base="org/copy")
    assert asked == [("org/name", commit), ("org/copy", None)]


def test_a_model_comes_back_in_the_precision_it_was_trained_in(make, tmp_path) -> None:
    model = make(dtype="bfloat16")
    model.recipe = replace(model.recipe, dtype="auto")  # what a GPU would have taken
    model.save(tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.backbone.dtype == torch.bfloat16 and loaded.recipe == model.recipe
    same(loaded.features(["login"]), model.features(["login"]))
    assert load(tmp_path / "m", dtype="float32").backbone.dtype == torch.float32


def test_a_loaded_model_is_fitted_further(saved_kind, clear, tmp_path) -> None:
    for kind in ("diagonal", "dense"):
        loaded = load(saved_kind(kind)[1])
        run = bayestune.fit(
            loaded, clear, out=tmp_path / kind, epochs=2, refresh="none", progress=silent
        )
        assert loaded.head.family == "diagonal"
        assert run.history[-1]["val_accuracy"] > 0.6
        assert load(tmp_path / kind).head.family == "diagonal"


# what lies in the folder ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_json_or_safetensors(saved_kind, kind) -> None:
    folder = saved_kind(kind)[1] / "model"
    for file in folder.iterdir():
        assert file.is_file() and file.suffix in {".json", ".safetensors", ".md", ".jinja", ".txt"}
        content = file.read_bytes()
        if file.suffix == ".safetensors":  # its first bytes, a length, may look like a pickle's
            assert load_file(file)
        elif file.suffix == ".json":
            json.loads(content)
        else:
            content.decode()
        assert file.stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_description_says_what_the_model_is(saved_kind, llama_base) -> None:
    model, out = saved_kind("dense")
    written = json.loads((out / "model" / "bayestune.json").read_text())
    assert written["format"] == 1 and written["method"] == "polar_vbll"
    assert written["head"] == {"kind": "GaussianHead", "family": "dense", "prior": "zero"}
    assert written["task"]["labels"]["names"] == ["login", "parcel", "refund"]
    assert written["pooling"] == "last"
    assert written["base"]["name"] == str(llama_base)
    assert written["base"]["fingerprint"] == model.source.fingerprint
    assert written["recipe"]["prompt"]["max_length"] == 512
    assert set(written["versions"]) == {"bayestune", "torch", "transformers", "peft", "python"}
    assert set(written["checksums"]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "posterior.safetensors",
    }


def test_the_posterior_holds_all_but_the_mean(saved_kind) -> None:
    def names(kind: str) -> set[str]:
        return set(load_file(saved_kind(kind)[1] / "model" / "posterior.safetensors"))

    prior = {"head.prior_mean", "head.log_prior_variance", "head.feature_energy"}
    density = {f"density.{n}" for n in ("means", "whitening", "present", "counts", "shrinkage")}
    assert names("diagonal") == {"head.log_scale"} | prior | density
    assert names("dense") == {"head.factor"} | prior | density
    assert names("point") == {"head.feature_energy"} | density
    # An encoder's adapter has no place for the mean.
    assert names("encoder") >= {"score.weight"} | prior | density


def test_saving_does_not_change_the_model(saved_kind, tmp_path: Path) -> None:
    model, _ = saved_kind("diagonal")
    before = model.predict(["login"]).probs
    model.save(tmp_path / "a")
    model.save(tmp_path / "a")
    same(model.predict(["login"]).probs, before)
