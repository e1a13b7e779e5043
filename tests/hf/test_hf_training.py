"""Training by a BayesTrainer: what is learnt, logged, chosen, kept and continued."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

import bayestune as bt
from bayestune.errors import StoreError

HEAD = "base_model.model.score."


def state_of(trainer):
    """All that a training changes: adapter, posterior, optimiser and schedule."""
    state = trainer.model.state_dict()
    model = {k: v for k, v in state.items() if "polar" in k or "score.modules_to_save" in k}
    optimizer = trainer.optimizer.state_dict()
    moments = {
        f"{i} {name}": value
        for i, entries in optimizer["state"].items()
        for name, value in entries.items()
    }
    rates = {f"lr {i}": torch.tensor(g["lr"]) for i, g in enumerate(optimizer["param_groups"])}
    assert len(model) > 20
    assert len(moments) > 20
    return {**model, **moments, **rates}


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


@pytest.fixture
def lora():
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")


def test_it_learns_and_logs_what_it_does(trainer):
    t = trainer(num_train_epochs=6, eval_strategy="epoch", eval_on_start=True)
    t.train()
    keys = {"nll", "ece", "brier", "accuracy", "epistemic", "loss"}
    rows = [row for row in t.state.log_history if "eval_nll" in row]
    assert len(rows) == 7
    assert keys <= {key.removeprefix("eval_") for key in rows[-1]}
    assert rows[0]["eval_nll"] == pytest.approx(1.0986, abs=1e-3)  # three classes, no knowledge
    assert rows[-1]["eval_nll"] < 0.75 * rows[0]["eval_nll"]
    assert rows[-1]["eval_accuracy"] > 0.9
    assert rows[-1]["eval_loss"] == pytest.approx(rows[-1]["eval_nll"], rel=1e-5)
    assert 0 < rows[-1]["eval_epistemic"] < 0.3
    assert max(logged(t, "orthogonality_error")) < 1e-5
    assert all(1 <= rank <= 4.001 for rank in logged(t, "stable_rank"))
    kl = logged(t, "kl")
    assert len(kl) == 36
    assert kl[-1] < kl[0]
    assert kl[-1] == pytest.approx(t.head.kl().item(), rel=1e-6)


@pytest.mark.parametrize("metric", ["eval_ece", "nll"])
def test_the_best_model_is_the_one_with_the_least_error_and_its_posterior(
    metric, trainer, tmp_path
):
    t = trainer(
        num_train_epochs=4,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        ours={"callbacks": [EarlyStoppingCallback(early_stopping_patience=3)]},
    )
    t.train()
    key = "eval_" + metric.removeprefix("eval_")
    values = logged(t, key)
    assert len(values) == 4
    assert t.state.best_metric == min(values)
    best = 1 + values.index(min(values))
    if key == "eval_ece":
        assert best < 4, "the last model is not the best, or this shows nothing"
    stored = load_file(tmp_path / "out" / f"checkpoint-{6 * best}" / "adapter_model.safetensors")
    for name, value in t.head.state_dict().items():
        assert torch.equal(value, stored[HEAD + name]), name
    assert t.evaluate()[key] == pytest.approx(min(values), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3, "save_steps": 1}])
def test_a_resumed_training_is_the_whole_one_bit_for_bit(options, trainer, classifier, tmp_path):
    """Dropout draws from the generators, a learnt prior changes between epochs."""

    def start(name):
        config = bt.PolarConfig(
            r=4, dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"
        )
        head = bt.head.GaussianHead(in_features=32, num_classes=3, learn_prior=True)
        strategy = "steps" if "save_steps" in options else "epoch"
        return trainer(
            model=classifier(config, head=head),
            output_dir=str(tmp_path / name),
            save_strategy=strategy,
            warmup_steps=2,
            **options,
        )

    whole = start("whole")
    whole.train()
    steps = whole.state.global_step
    expected = state_of(whole)
    for at in {steps // 2, steps // 2 + 1} if options else {steps // 2}:
        again = start(f"again{at}")
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
        assert again.state.global_step == steps
        found = state_of(again)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), (at, name)
    moved = expected["base_model.model.score.modules_to_save.default.log_prior_variance"]
    fresh = bt.head.GaussianHead(in_features=32, num_classes=3)
    fresh.set_feature_energy(float(whole.head.feature_energy))
    assert moved != fresh.log_prior_variance, "the prior was to be learnt"


def test_a_checkpoint_without_a_posterior_is_refused(trainer, classifier, tmp_path):
    plain = classifier(head=bt.head.LinearHead(in_features=32, num_classes=3))
    trainer(model=plain, save_strategy="epoch", num_train_epochs=1).train()
    with pytest.raises(StoreError, match="has no log_prior_variance of the last layer"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))


def test_evaluation_by_steps_and_several_sets(trainer, encode):
    sets = {"near": encode(30, 7), "wrong": encode(30, 8, wrong=0.6)}
    t = trainer(val=sets, num_train_epochs=4, eval_strategy="steps", eval_steps=8)
    t.train()
    assert len(logged(t, "eval_near_nll")) == 3
    assert logged(t, "eval_near_nll")[-1] < logged(t, "eval_wrong_nll")[-1]
    assert "eval_near_epistemic" in t.state.log_history[-2] or logged(t, "eval_near_epistemic")


def test_lora_and_a_point_head_train_alike(trainer, classifier, lora):
    head = bt.head.LinearHead(in_features=32, num_classes=3)
    for model in (classifier(lora), classifier(lora, head=head)):
        factory = bt.optim.for_trainer(lr=5e-3, head_lr=5e-2)
        t = trainer(model=model, num_train_epochs=6, ours={"optimizer_cls_and_kwargs": factory})
        t.train()
        found = t.evaluate()
        assert found["eval_accuracy"] > 0.9
        assert (found["eval_epistemic"] == 0) == t.head.point
    assert t.head.point
    assert logged(t, "kl")[-1] == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_trains_a_posterior_in_float32(autocast, trainer, classifier):
    dtype = torch.float32 if autocast else torch.bfloat16
    t = trainer(model=classifier(dtype=dtype), num_train_epochs=6, bf16=autocast)
    t.train()
    assert {p.dtype for p in t.model.parameters() if p.requires_grad} == {torch.float32}
    frozen = next(p for n, p in t.model.named_parameters() if "embed_tokens" in n)
    assert frozen.dtype == dtype
    assert max(logged(t, "orthogonality_error")) < 1e-5
    assert t.evaluate()["eval_accuracy"] > 0.9


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_activation_checkpointing_changes_nothing(trainer, classifier):
    found = []
    for on in (False, True):
        model = classifier()
        if on:
            model.enable_input_require_grads()
        t = trainer(model=model, num_train_epochs=1, gradient_checkpointing=on)
        t.train()
        found.append(t.head.weight.detach().clone())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_what_would_be_pushed_to_the_hub(trainer, monkeypatch, tmp_path):
    pushed = {}

    class Url(str):
        repo_id = "me/out"

    def upload(self, *, repo_id, folder_path, ignore_patterns, **kwargs):
        files = [f for f in Path(folder_path).rglob("*") if f.is_file()]
        names = {f.relative_to(folder_path).as_posix() for f in files}
        pushed[repo_id] = {n for n in names if not n.startswith(("_", "checkpoint-"))}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, *a, **k: Url("https://hf.co/me/out"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    t = trainer(push_to_hub=True, hub_model_id="me/out", num_train_epochs=1)
    t.train()
    t.push_to_hub()
    files = pushed["me/out"]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files
    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, value in t.head.state_dict().items():
        assert torch.equal(value, stored[HEAD + name]), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: peft" in card
    assert card.count("## Uncertainty") == 1
    assert "bt.hf.to_bayes_model" in card
