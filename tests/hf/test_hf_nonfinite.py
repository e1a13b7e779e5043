"""A BayesTrainer stops where numbers break down, and keeps the state before."""

from __future__ import annotations

import pytest
import torch
from test_hf_training import state_of

import bayestune as bt
from bayestune.errors import NumericsError


def spoil(module: torch.nn.Module, at: int) -> None:
    """Let a layer give NaN from its at-th pass in training on."""
    passes = []

    def broken(_, __, output):
        passes.append(module.training)
        return output * torch.nan if sum(passes) >= at else output

    module.register_forward_hook(broken)


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_a_feature_that_is_no_number_stops_after_the_last_good_state_is_kept(
    schedule, trainer, classifier, tmp_path
):
    def start(name, **options):
        config = bt.PolarConfig(
            r=4, dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"
        )
        return trainer(
            model=classifier(config),
            output_dir=str(tmp_path / name),
            save_strategy="epoch",
            ours={"schedule": schedule},
            **options,
        )

    whole = start("whole")
    whole.train()
    broken = start("broken")
    spoil(broken.model.base_model.model.model.layers[1].mlp, at=9)
    with pytest.raises(NumericsError) as stopped:
        broken.train()
    said = str(stopped.value)
    assert "first in base_model.model.model.layers.1.mlp)" in said
    assert "It was in step 9" in said and f"so is {tmp_path}/broken/checkpoint-8" in said
    again = start("again")
    again.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-8"))
    expected, found = state_of(whole), state_of(again)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_a_gradient_that_is_no_number_changes_nothing(schedule, trainer, classifier, tmp_path):
    options = {"ours": {"schedule": schedule}, "gradient_accumulation_steps": 2}
    fine = trainer(model=classifier(), max_steps=2, lr_scheduler_type="constant", **options)
    fine.train()
    broken = trainer(model=classifier(), max_steps=5, lr_scheduler_type="constant", **options)
    name, weight = next((n, p) for n, p in broken.model.named_parameters() if "polar" in n)
    passes = []

    def spoilt(gradient):
        passes.append(None)
        return gradient * torch.inf if len(passes) > 4 else gradient

    weight.register_hook(spoilt)
    with pytest.raises(NumericsError, match="It was in step 3; the model is as it was") as stopped:
        broken.train()
    assert f"gradient of {name} is" in str(stopped.value)
    expected, found = state_of(fine), state_of(broken)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_loss_that_is_no_number_stops_it(trainer):
    t = trainer(num_train_epochs=1)
    compute_loss = t.compute_loss
    t.compute_loss = lambda *args, **options: compute_loss(*args, **options) * torch.nan
    with pytest.raises(NumericsError, match=r"The loss is nan.*in step 1"):
        t.train()
