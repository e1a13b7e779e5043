"""What a step of a BayesTrainer is: one bound, the same whichever way its rows are cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import distributed_run
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

import bayestune as bt
from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.training.loop import Loop
from bayestune.training.rows import prepare


def trainable(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


class Gradients(TrainerCallback):
    """Keeps the adapter's gradients as the optimiser is about to take them."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = kwargs["model"].named_parameters()
        self.seen.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def bound_by_hand(head, phi, labels):
    """Jensen's bound and the KL of a diagonal Gaussian, written out in float64."""
    W, s = head.weight.detach().double(), head.log_scale.detach().double().exp()
    mu, v = phi @ W.T, phi.square() @ s.square().T
    nll = -(mu.gather(1, labels[:, None])[:, 0] - (mu + v / 2).logsumexp(1)).mean()
    prior = head.log_prior_variance.double().exp()
    kl = 0.5 * ((s**2 + W**2) / prior - 1 - 2 * s.log() + prior.log()).sum()
    return float(nll), float(kl)


def features_by_hand(model, rows, tokenizer):
    """The state of the last token, by a pass of the bare transformer for every text."""
    bare = model.get_base_model().model
    with torch.no_grad():
        ids = [torch.tensor([row["input_ids"]]) for row in rows]
        return torch.cat([bare(input_ids=i).last_hidden_state[:, -1] for i in ids]).double()


def test_the_objective_is_the_mean_bound_and_the_kl_once_over_all_rows(trainer, encode, tokenizer):
    t = trainer(ours={"kl": 0.7})
    t.create_optimizer()
    head = t.head
    with torch.no_grad():
        head.weight.add_(0.1 * torch.randn_like(head.weight))
    rows = encode(96)
    batch = t.data_collator(rows[:10])
    nll, kl = bound_by_hand(head, features_by_hand(t.model, rows[:10], tokenizer), batch["labels"])
    loss, outputs = t.compute_loss(t.model, dict(batch), return_outputs=True)
    assert loss.item() == pytest.approx(nll + 0.7 / 96 * kl, rel=1e-5)
    assert outputs.logits.exp().sum(1) == pytest.approx(torch.ones(10), abs=1e-5)


OPTIONS = [
    {},
    {"schedule": "joint"},
    {"head_steps": 3},
    {"deviations": "adam"},
    {"kl": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "default"))
def test_steps_are_those_of_our_own_loop(options, trainer, encode, make, clear):
    """Same model, same batches, four steps: adapter and posterior agree to rounding."""
    ours = make(rank=4, alpha=8.0, layers="all", prompt={"template": "{text}"})
    rows = prepare(ours, clear)
    data = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(label)}
        for ids, label in zip(rows.encoded.ids, rows.labels, strict=True)
    ]
    t = trainer(
        train=data,
        ours={"optimizer_cls_and_kwargs": bt.optim.for_trainer(lr=2e-3, head_lr=5e-2), **options},
        max_steps=4,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
    )
    peft_model = ours.backbone.peft_model
    state = {k: v for k, v in peft_model.state_dict().items() if "polar" in k}
    assert not t.model.load_state_dict(state, strict=False).unexpected_keys
    # A mean of zero gives the adapter no gradient, and rounding alone its first joint step.
    mean = 0.1 * torch.randn(ours.head.weight.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours.head.weight.copy_(mean)
        t.head.weight.copy_(mean)
    t.train()
    ours.head.set_feature_energy(ours.features(clear))
    config = {k: v for k, v in options.items() if k != "kl"}
    loop = Loop(
        method=ours.method,
        reader=ours.reader(),
        head=ours.head,
        rows=rows,
        config=replace(ours.recipe.train, lr=2e-3, head_lr=5e-2, warmup=0.0, floor=1.0, **config),
        kappa=options.get("kl", 1.0),
        seed=0,
        epochs=1,
    )
    ours.backbone.train(True)
    losses = [loop.run_step(list(range(16 * i, 16 * i + 16))) for i in range(4)]
    logged = [row["loss"] for row in t.state.log_history if "loss" in row]
    weight = options.get("kl", 1.0) / 120
    assert logged == pytest.approx([nll + weight * kl for nll, kl, _ in losses], rel=1e-4)
    theirs = dict(t.model.named_parameters())
    compared = 0
    for name, p in peft_model.named_parameters():
        if p.requires_grad:
            compared += 1
            torch.testing.assert_close(theirs[name], p, rtol=1e-3, atol=2e-5)
    assert compared == 4 * 2 * 3 + 2
    assert (ours.head.weight - mean).abs().max() > 1e-2


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_accumulated_micro_batches_are_one_batch(schedule, trainer, classifier, encode):
    """In float64; 90 rows, so that the last step has 4, 4 and 2 of them."""
    found = []
    for size, steps in ((16, 1), (4, 4)):
        gradients = Gradients()
        t = trainer(
            model=classifier().double(),
            train=encode(90),
            ours={"schedule": schedule, "callbacks": [gradients], "head_steps": 2},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
        )
        t.train()
        found.append((gradients.seen, trainable(t.model), t.state.log_history))
    (whole, model, log), (cut, other, cut_log) = found
    assert len(whole) == len(cut) == 12
    for a, b in zip(whole, cut, strict=True):
        assert a.keys() == b.keys()
        assert not any("score" in name for name in a), "the Trainer moves the adapter alone"
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-9)
    for name, value in model.items():
        torch.testing.assert_close(other[name], value, rtol=1e-7, atol=1e-9)
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (log, cut_log)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_joint_step_takes_the_gradient_of_the_objective(trainer, encode):
    """By autograd of the loss that is reported, at the point where the step starts."""
    gradients = Gradients()
    t = trainer(
        ours={"schedule": "joint", "callbacks": [gradients]},
        max_steps=1,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    )
    t.create_optimizer()
    loss = t.compute_loss(t.model, t.data_collator(encode(96)[:16]))
    names = [n for n, p in t.model.named_parameters() if p.requires_grad and "score" not in n]
    named = dict(t.model.named_parameters())
    expected = torch.autograd.grad(loss, [named[n] for n in names])
    t.train()
    for name, grad in zip(names, expected, strict=True):
        torch.testing.assert_close(gradients.seen[0][name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_two_processes_train_what_one_does(encode, llama_base, tmp_path):
    """Two micro-batches of four on each of two processes against one batch of 16, in float64."""
    rows = tmp_path / "rows.pt"
    torch.save(encode(64), rows)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(bt.__file__).parents[1]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    if sys.platform == "linux":  # no look-up of the machine's name
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, distributed_run.__file__, str(llama_base), str(rows), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        alone = distributed_run.learnt(llama_base, rows, tmp_path / "one", 16, 1)
        said = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert alone.keys() == first.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9)


class Endless(IterableDataset):
    """Rows without a length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_rows_without_a_length_need_their_number(trainer, encode):
    with pytest.raises(ConfigError, match="train_rows=N"):
        trainer(train=Endless(encode(32)), max_steps=2)
    counted = {}
    for rows in (32, 3200):
        t = trainer(train=Endless(encode(32)), ours={"train_rows": rows}, max_steps=1)
        t.train()
        counted[rows] = t.state.log_history[0]["loss"]
    sized = trainer(train=encode(32), max_steps=1, train_sampling_strategy="sequential")
    sized.train()
    assert counted[32] == pytest.approx(sized.state.log_history[0]["loss"], rel=1e-6)
    assert counted[3200] < counted[32] - 0.3
    with pytest.raises(ConfigError, match="train_rows is 0"):
        trainer(train=Endless(encode(32)), ours={"train_rows": 0}, max_steps=1)


def test_labels_and_features_that_are_wrong_stop_the_training(trainer, encode):
    rows = encode(32)
    rows[3] = {**rows[3], "labels": -100}
    with pytest.raises(DataError, match="from -100"):
        trainer(train=rows, ours={}).train()
    with pytest.raises(DataError, match="has no labels"):
        trainer(train=[{k: v for k, v in r.items() if k != "labels"} for r in encode(32)]).train()
    t = trainer()
    with torch.no_grad():
        t.model.get_base_model().model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="Features are NaN"):
        t.train()
