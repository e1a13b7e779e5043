"""What holds for every form: whole or not at all, described, checked, and nothing lost."""

from __future__ import annotations

import copy

import pytest
import torch
from export_checks import described
from transformers import AutoModel

import bayestune as bt
from bayestune.data import PromptConfig
from bayestune.errors import ConfigError, StoreError
from bayestune.exports import FORMS, export
from bayestune.exports import run as running
from bayestune.exports.prompt import prompt_section
from bayestune.files import checksum


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_describes_itself(kind, run, form, tmp_path) -> None:
    folder = bt.export(run, to=form, out=tmp_path / "new" / "out")
    found = described(folder)
    assert (found["format"], found["form"], found["draws"]) == (1, form, [])
    assert found["model"]["method"] == "polar_vbll" and found["model"]["versions"]["peft"]
    assert found["model"]["base"]["fingerprint"] == kind("polar_vbll").source.fingerprint
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(found["files"]) == set(files) - {"export.json"}
    assert all(checksum(files[name]) == value for name, value in found["files"].items())
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files.values())
    sidecar = form in ("vllm", "gguf-ready")
    assert any("covariance" in line for line in found["left_out"]) != sidecar
    assert any("posterior/" in line for line in found["kept"]) == sidecar
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert '"{text}\\nLabel:"' in card and '["login", "parcel", "refund"]' in card
    assert all(f"{line}." in card for line in found["kept"] + found["left_out"])
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_what_lies_there_is_not_lost(run, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(run, to="lora", out=out)  # an empty folder is no loss
    with pytest.raises(StoreError, match="holds an export already; overwrite replaces it"):
        export(run, to="vllm", out=out)
    assert described(out)["form"] == "lora"
    export(run, to="vllm", out=out, overwrite=True)
    assert described(out)["form"] == "vllm" and not (out / "adapter_config.json").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for place in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.tex", run):
        with pytest.raises(StoreError, match="something else than an export"):
            export(run, to="lora", out=place, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_failure_leaves_what_was_there(kind, tmp_path, monkeypatch) -> None:
    model, out = kind("polar_vbll"), tmp_path / "out"
    export(model, to="lora", out=out)
    before = described(out)
    weights = {k: v.clone() for k, v in model.backbone.state_dict().items()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayestune.exports.merged.save_tokenizer", full)
    with pytest.raises(StoreError, match="No space left"):
        export(model, to="merged", out=out, overwrite=True)
    assert described(out) == before and [p.name for p in tmp_path.iterdir()] == ["out"]
    after = model.backbone.state_dict()
    assert not [k for k, v in weights.items() if not torch.allclose(after[k], v, 0, 0, True)]


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_check_finds_what_is_wrong(kind, form, tmp_path, monkeypatch) -> None:
    model = kind("polar_vbll")
    good = described(export(model, to=form, out=tmp_path / "good", check=True))
    assert 0 <= good["largest_difference"] < 1e-5

    def wrong(*arguments: object) -> object:
        found = plain(*arguments)
        path = next(iter(found.factors))
        A, B = found.factors[path]
        found.factors[path] = A, 1.5 * B
        return found

    plain = running.plain
    monkeypatch.setattr(running, "plain", wrong)
    with pytest.raises(StoreError, match="differs from the model by"):
        export(model, to=form, out=tmp_path / "bad", check=True)
    assert not (tmp_path / "bad").exists()


def test_the_check_is_of_the_draw_that_was_asked_for(kind, tmp_path, monkeypatch) -> None:
    model = kind("blob")
    export(model, to="merged", out=tmp_path / "out", samples=2, check=True)
    own = running.plain
    monkeypatch.setattr(running, "plain", lambda model, draw: own(model, 1))
    with pytest.raises(StoreError, match="differs from the model by"):
        export(model, to="lora", out=tmp_path / "bad", samples=2, check=True)


def test_arguments_that_make_no_sense_are_refused(kind, run, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no form 'gguf_ready' .* Did you mean 'gguf-ready'\?"):
        export(run, to="gguf_ready", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="say how a run is loaded"):
        export(kind("polar_vbll"), to="lora", out=tmp_path / "out", dtype="bfloat16")
    with pytest.raises(StoreError, match="does not exist"):
        export(tmp_path / "nowhere", to="lora", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_precision_is_that_of_what_is_written(run, tmp_path) -> None:
    folder = export(run, to="merged", out=tmp_path / "out", dtype="bfloat16", check=True)
    assert AutoModel.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("labels", "options", "text"),
    [
        ("choice", {}, '"{question}\\nA) {choice A}\\nB) {choice B}'),
        ("choice", {"template": "{passage}\n{question}\nA:"}, '"{passage}\\n{question}\\nA:"'),
        ("clear", {"template": "Say {{it}}: {text}"}, '"Say {it}: {text}"'),
    ],
)
def test_the_card_shows_the_prompt(make, request, labels, options, text) -> None:
    model = make(labels=request.getfixturevalue(labels), prompt=options)
    section = prompt_section(model)
    assert text in section
    assert ("leave out the logits" in section) == (labels == "choice")


def test_the_card_warns_of_a_prompt_that_begins_with_bos(make) -> None:
    model = copy.copy(make())
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = "<s>{{ messages[0]['content'] }}</s>bot"
    model.recipe = copy.copy(model.recipe)
    object.__setattr__(model.recipe, "prompt", PromptConfig(chat=True))
    section = prompt_section(model)
    assert "<s>{text}\\nLabel:</s>bot" in section and "add_special_tokens=False" in section


def test_pairs_of_an_encoder_are_shown_as_two_texts(kind) -> None:
    assert '["{text}", "{text2}"]' in prompt_section(kind("encoder"))
    assert "the mean of all tokens" in prompt_section(kind("encoder"))
