"""The optimiser inside the Trainer of transformers, with saving and resuming."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayestune.geometry import orthogonality_error, random_point
from bayestune.optim import StiefelAdam, for_trainer

transformers = pytest.importorskip("transformers")


class TinyPolar(nn.Module):
    """x ↦ W x + X Θ Yᵀ x with Stiefel factors."""

    manifolds = {"factors": "stiefel"}  # noqa: RUF012

    def __init__(self, base, r, generator):
        super().__init__()
        self.base = base
        X, Y = (
            random_point(n, r, generator=generator) for n in (base.out_features, base.in_features)
        )
        self.factors = nn.ParameterDict({"X": X, "Y": Y})
        self.theta = nn.Parameter(torch.zeros(r, r))

    def forward(self, x):
        return self.base(x) + x @ self.factors["Y"] @ self.theta.T @ self.factors["X"].T


def build_model():
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj = TinyPolar(attention.q_proj, 4, generator)
        attention.v_proj = TinyPolar(attention.v_proj, 4, generator)
    model.score.requires_grad_(True)
    return model


def rows():
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 32, (32, 6), generator=g)
    return [{"input_ids": row, "labels": int(row[-1] > 16)} for row in ids]


def trainer(folder, **changes):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        warmup_steps=1,
        seed=3,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        report_to="none",
        **changes,
    )
    return transformers.Trainer(
        model=build_model(),
        args=arguments,
        train_dataset=rows(),
        optimizer_cls_and_kwargs=for_trainer(lr=0.02, weight_decay=0.01),
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_trainer_trains_saves_and_resumes_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "run")
    before = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    whole.train()
    optimizer = whole.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, StiefelAdam)
    assert [g["name"] for g in inner.param_groups] == ["stiefel", "euclidean"]
    rates = [entry["learning_rate"] for entry in whole.state.log_history if "loss" in entry]
    assert len(rates) == 6
    assert max(rates) <= 0.02
    assert rates[-1] < rates[1]  # the Trainer's schedule drives the groups
    for name, p in whole.model.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved == p.requires_grad, name
        if "factors" in name:
            assert orthogonality_error(p.detach()) < 1e-5
    resumed = trainer(tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    theirs = dict(resumed.model.named_parameters())
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, theirs[name]), name


def test_options_pass_through_the_factory():
    factory, options = for_trainer(lr=0.01, update="landing", penalty=1.0)
    assert not isinstance(factory, type)
    optimizer = factory()(build_model(), **options)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["update"], group["penalty"]) == (0.01, "landing", 1.0)
