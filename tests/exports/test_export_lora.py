"""Plain LoRA folders, loaded by PEFT without bayestune; draws of the posterior among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from export_checks import TEXTS, described, mean_logits, prompts, python_of, stock_logits
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayestune.errors import ConfigError
from bayestune.exports import export
from bayestune.store import open_sidecar

DRAWN = ("blob", "polar_blob", "scalabl", "tfb", "bayesian_lora", "swag", "ivon", "ensemble")

#: Runs the code of each card as it stands, on prompts; encoders and others give their states.
PROGRAM = """
import json, sys, torch
found = {}
for name, (code, texts) in json.load(sys.stdin).items():
    exec(code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = 0
    with torch.no_grad():
        pairs = [list(column) for column in zip(*texts)] if isinstance(texts[0], list) else [texts]
        inputs = tokenizer(*pairs, padding=True, return_tensors="pt")
        out = model.eval()(**inputs)
    if hasattr(out, "logits"):
        found[name] = out.logits.tolist()
    else:
        mask = inputs["attention_mask"].unsqueeze(-1)
        found[name] = ((out.last_hidden_state * mask).sum(1) / mask.sum(1)).tolist()
assert not [name for name in sys.modules if name.startswith("bayestune")]
print(json.dumps(found))
"""


def without_bayestune(program: str, given: object) -> dict:
    """Run a program in an interpreter that has no bayestune to import."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(given),
        env={**environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cards_code_gives_equal_logits_without_bayestune(kind, tmp_path) -> None:
    given, wanted = {}, {}
    for name in ("polar_vbll", "trained", "mle", "number", "pooled", "encoder"):
        model = kind(name)
        folder = export(model, to="lora", out=tmp_path / name)
        texts = [("find my parcel", "login"), ("a", "the order")] if name == "encoder" else TEXTS
        given[name] = python_of(folder), texts if name == "encoder" else prompts(model)
        wanted[name] = mean_logits(model, texts)
    for name, values in without_bayestune(PROGRAM, given).items():
        found = torch.tensor(values)
        if name in ("pooled", "encoder"):  # states, which the side-car's rows make logits of
            found = found @ open_sidecar(tmp_path / name).readout.head.weight.detach().T
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
        assert wanted[name].std() > 0.05


def test_it_is_plain_lora_and_nothing_else(kind, tmp_path) -> None:
    for name in ("polar_vbll", "mle"):
        folder = export(kind(name), to="lora", out=tmp_path / name)
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert (settings["peft_type"], settings["task_type"]) == ("LORA", "SEQ_CLS")
        assert settings["lora_alpha"] == settings["r"] == 4
        assert not settings["use_rslora"] and settings["modules_to_save"] == ["classifier", "score"]
        tensors = load_file(folder / "adapter_model.safetensors")
        score = tensors.pop("base_model.model.score.weight")
        assert torch.equal(score, kind(name).readout.head.weight)
        assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in tensors)
        assert not (folder / "posterior").exists()


@pytest.mark.parametrize("name", DRAWN)
def test_samples_average_to_the_models_own_prediction(kind, name, tmp_path, llama_base) -> None:
    model = kind(name)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    folder = export(model, to="lora", out=tmp_path / "out", samples=3)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"sample-0", "sample-1", "sample-2"}
    after = model.backbone.state_dict()
    changed = [k for k, v in before.items() if not torch.allclose(after[k], v, 0, 0, True)]
    assert not changed
    tokenizer = AutoTokenizer.from_pretrained(llama_base)
    total, each = torch.zeros(()), []
    for s in range(3):
        base = AutoModelForSequenceClassification.from_pretrained(llama_base, num_labels=3)
        stock = PeftModel.from_pretrained(base, folder / f"sample-{s}")
        each.append(stock_logits(stock, tokenizer, prompts(model)).softmax(-1))
    total = torch.stack(each).mean(0)
    own = model.recipe
    model.recipe = replace(own, predict=replace(own.predict, samples=3))
    try:
        wanted = model.predict(TEXTS).probs
    finally:
        model.recipe = own
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-5)
    assert (each[0] - each[1]).abs().max() > 1e-4


def test_an_ensemble_is_its_members_unless_one_is_asked_for(kind, tmp_path) -> None:
    model = kind("ensemble")
    every = export(model, to="lora", out=tmp_path / "all", check=True)
    assert described(every)["draws"] == [0, 1, 2]
    first = export(model, to="lora", out=tmp_path / "first", samples=0)
    assert described(first)["draws"] == [] and not (first / "sample-0").exists()
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() == (every / "sample-0" / name).read_bytes()
    assert (first / name).read_bytes() != (every / "sample-1" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "samples", "reason"),
    [
        ("c_lora", None, "depends on the token"),
        ("c_lora", 2, "depends on the token"),
        ("mc_dropout", 2, "draws depend on the text"),
        ("laplace_lora", 2, "linearised model"),
        ("polar_vbll", 2, "over the last layer"),
        ("mle", 2, "nothing is drawn"),
        ("ensemble", 4, "3 members, and 4 are asked for"),
        ("blob", -1, "samples is -1"),
    ],
)
def test_what_has_no_such_form_says_why(kind, name, samples, reason, tmp_path) -> None:
    with pytest.raises(ConfigError, match=reason):
        export(kind(name), to="lora", out=tmp_path / "out", samples=samples)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mc_dropout", "laplace_lora", "blob", "swag", "scalabl"])
def test_the_mean_of_a_random_adapter_is_exported_and_called_so(kind, name, tmp_path) -> None:
    found = described(export(kind(name), to="lora", out=tmp_path / "out", check=True))
    assert found["largest_difference"] < 1e-5
    assert any("mean alone" in line for line in found["left_out"])


def test_scales_that_stand_beside_the_adapter_are_refused(make, tmp_path) -> None:
    with pytest.raises(Exception, match="not trained yet"):
        export(make("scalabl"), to="lora", out=tmp_path / "out")
