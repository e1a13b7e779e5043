"""One step: what moves, by which gradient, at which rate."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import move
from torch import Tensor

from bayestune.errors import ConfigError, NumericsError
from bayestune.optim import step_deviations
from bayestune.peft import adapter_report
from bayestune.training import fit
from bayestune.training.loop import DEVIATION_RATE, Loop, natural_deviations

BATCH = list(range(8))


def watch(loop: Loop, monkeypatch) -> list[dict[str, Tensor | None]]:
    """Record every parameter's gradient, by name, after each backward pass of the loop."""
    seen: list[dict[str, Tensor | None]] = []
    descend = loop._descend

    def note(loss: Tensor, batch: list[int]) -> None:
        descend(loss, batch)
        named = {f"adapter.{i}": p for i, p in enumerate(adapters(loop))}
        named |= {f"head.{n}": p for n, p in loop.head.named_parameters()}
        seen.append({n: None if p.grad is None else p.grad.clone() for n, p in named.items()})

    monkeypatch.setattr(loop, "_descend", note)
    return seen


def adapters(loop: Loop) -> list[torch.nn.Parameter]:
    return [p for group in loop.adapter.param_groups for p in group["params"]]


def is_none_or_zero(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())


# alternating and joint --------------------------------------------------------------------------


def test_alternating_moves_the_head_on_still_features_and_the_adapter_against_the_new_head(
    make, clear, make_loop, monkeypatch
) -> None:
    model = move(make())
    loop = make_loop(model, clear, clip=0.0)
    before = {n: p.detach().clone() for n, p in model.head.named_parameters()}
    seen = watch(loop, monkeypatch)
    reached: list[dict[str, Tensor]] = []
    step = loop._step_posterior

    def note(*arguments):
        step(*arguments)
        reached.append({n: p.detach().clone() for n, p in model.head.named_parameters()})

    monkeypatch.setattr(loop, "_step_posterior", note)
    start = [p.detach().clone() for p in adapters(loop)]
    loop.run_step(BATCH)

    head_step, adapter_step = seen
    assert all(is_none_or_zero(g) for n, g in head_step.items() if n.startswith("adapter"))
    assert not any(is_none_or_zero(g) for n, g in head_step.items() if n.startswith("head"))
    # The head takes its one step before the adapter's gradient is taken, and no second one.
    (updated,) = reached
    after = dict(model.head.named_parameters())
    assert all(not torch.equal(before[n], updated[n]) for n in before)
    assert all(torch.equal(after[n], updated[n]) for n in before)

    # The adapter's gradient is that of the objective at the updated head.
    with torch.no_grad():
        for parameter, value in zip(adapters(loop), start, strict=True):
            parameter.copy_(value)
    model.backbone.train(True)
    terms = model.method.loss(
        model.head, loop.rows.batch(loop.reader.batch(loop.rows.encoded, BATCH), BATCH)
    )
    expected = torch.autograd.grad(terms.nll + terms.kl / len(clear), adapters(loop))
    for i, gradient in enumerate(expected):
        torch.testing.assert_close(adapter_step[f"adapter.{i}"], gradient, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            parameter.copy_(before[name])
    terms = model.method.loss(
        model.head, loop.rows.batch(loop.reader.batch(loop.rows.encoded, BATCH), BATCH)
    )
    stale = torch.autograd.grad(terms.nll, adapters(loop))
    gaps = [
        float((adapter_step[f"adapter.{i}"] - g).abs().max() / g.abs().max().clamp_min(1e-9))
        for i, g in enumerate(stale)
    ]
    assert max(gaps) > 1e-3


def test_the_head_may_take_several_steps_on_one_pass(make, clear, make_loop, monkeypatch) -> None:
    loop = make_loop(move(make()), clear, head_steps=3)
    passes: list[int] = []
    batch = loop.reader.batch
    monkeypatch.setattr(
        loop.reader, "batch", lambda *arguments: passes.append(1) or batch(*arguments)
    )
    seen = watch(loop, monkeypatch)
    loop.run_step(BATCH)
    assert len(seen) == 4 and len(passes) == 1
    gradients = [s["head.weight"] for s in seen[:3]]
    assert not torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[1], gradients[2])


def test_joint_takes_one_gradient_for_both(make, clear, make_loop, monkeypatch) -> None:
    model = move(make())
    loop = make_loop(model, clear, schedule="joint", clip=0.0)
    tensors = [*adapters(loop), *model.head.parameters()]
    model.backbone.train(True)
    terms = model.method.loss(
        model.head, loop.rows.batch(loop.reader.batch(loop.rows.encoded, BATCH), BATCH)
    )
    expected = torch.autograd.grad(terms.nll + terms.kl / len(clear), tensors)
    before = [t.detach().clone() for t in tensors]
    seen = watch(loop, monkeypatch)
    loop.run_step(BATCH)
    assert len(seen) == 1
    for got, gradient in zip(seen[0].values(), expected, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-7)
    assert not any(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_natural_gradient_moves_the_deviations_and_adam_the_rest(
    make, clear, make_loop, monkeypatch, schedule
) -> None:
    model = move(make())
    loop = make_loop(model, clear, kappa=0.3, deviations="natural", schedule=schedule)
    held = [p for group in loop.posterior.param_groups for p in group["params"]]
    assert [p is model.head.weight for p in held] == [True]
    before = model.head.log_scale.detach().clone()
    seen = watch(loop, monkeypatch)
    loop.run_step(BATCH)
    expected = before.clone()
    rate = DEVIATION_RATE * loop.rate(0)
    step_deviations(expected, seen[0]["head.log_scale"], rate, 0.3 / len(clear))
    torch.testing.assert_close(model.head.log_scale.detach(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected, before)
    assert model.head.log_scale.grad is None  # nothing is left for the next step


@pytest.mark.parametrize(
    ("method", "options", "train"),
    [
        ("polar_vbll", {"head": {"covariance": "dense"}}, {}),
        ("polar_vbll", {}, {"kl": 0.0}),
        ("mle", {}, {}),
    ],
)
def test_natural_gradient_needs_deviations_and_a_divergence(
    make, clear, method, options, train
) -> None:
    model = make(method, **options)
    with pytest.raises(ConfigError, match="diagonal or eigen"):
        fit(model, clear, deviations="natural", **train)


@pytest.mark.parametrize(
    ("method", "options", "train", "natural"),
    [
        ("polar_vbll", {}, {}, True),
        ("lora_vbll", {}, {}, True),
        ("polar_vbll", {"head": {"covariance": "eigen"}}, {}, False),
        ("polar_vbll", {"head": {"covariance": "eigen"}}, {"deviations": "natural"}, True),
        ("polar_vbll", {"head": {"covariance": "dense"}}, {}, False),
        ("polar_vbll", {}, {"kappa": 0.0}, False),
        ("polar_vbll", {}, {"deviations": "adam"}, False),
        ("mle", {}, {}, False),
    ],
)
def test_deviations_take_natural_steps_where_they_can(
    make, clear, make_loop, method, options, train, natural
) -> None:
    loop = make_loop(make(method, **options), clear, **train)
    assert (loop.natural is not None) == natural
    held = {id(p) for group in loop.posterior.param_groups for p in group["params"]}
    own = getattr(loop.head, "log_scale", None)
    assert own is None or (id(own) in held) != natural


def test_the_deviations_of_a_noisy_head_take_adams_steps(make, numbers) -> None:
    assert natural_deviations(make(labels=numbers).head, 1.0, "auto") is None


# what moves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["polar_vbll", "mle"])
def test_only_adapter_and_head_move(make, clear, make_loop, method) -> None:
    model = move(make(method))
    loop = make_loop(model, clear, epochs=1)
    before = {n: t.clone() for n, t in model.backbone.state_dict().items()}
    loop.run_epoch(lambda count=1, note="": None)
    after = model.backbone.state_dict()
    assert before.keys() == after.keys()
    changed = {n for n in before if not torch.equal(before[n].nan_to_num(), after[n].nan_to_num())}
    kinds = (
        ("polar_X", "polar_Y", "polar_theta") if method == "polar_vbll" else ("lora_A", "lora_B")
    )
    expected = {n for n in before if any(kind in n for kind in kinds)}
    assert len(expected) == (4 * 3 if method == "polar_vbll" else 4 * 2)  # query and value, twice
    heads = {n for n in before if "modules_to_save" in n}
    assert changed - heads == expected
    assert {n.rsplit(".", 1)[1] for n in changed & heads} == {
        n for n, p in model.head.named_parameters() if p.requires_grad
    }


def test_the_factors_stay_on_the_manifold(make, clear, make_loop) -> None:
    model = make(targets="all-linear")
    loop = make_loop(model, clear, epochs=6, lr=2e-2)
    worst = 0.0
    for _ in range(6):
        loop.run_epoch(lambda count=1, note="": None)
        report = adapter_report(model.backbone.peft_model)
        worst = max(worst, *(max(r.orthogonality_X, r.orthogonality_Y) for r in report))
    assert loop.step == 48 and worst < 1e-4
    assert max(r.stable_rank for r in report) > 0


# numbers that are none --------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rows(make, clear, make_loop) -> None:
    model = make()
    loop = make_loop(model, clear)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"The loss is nan .* at step 0 .* ids: 1, 2"):
        loop.run_step(BATCH)


def test_a_gradient_that_is_no_number_stops_too(make, clear, make_loop, monkeypatch) -> None:
    loop = make_loop(move(make()), clear)
    descend = loop._descend

    def poison(loss: Tensor, terms: object) -> None:
        descend(loss, terms)
        gradient = adapters(loop)[0].grad
        if gradient is not None:
            gradient.view(-1)[0] = float("inf")

    monkeypatch.setattr(loop, "_descend", poison)
    before = [p.detach().clone() for p in adapters(loop)]
    with pytest.raises(NumericsError, match=r"A gradient of the adapter.* at step 0 in"):
        loop.run_step(BATCH)
    assert all(torch.equal(a, b) for a, b in zip(before, adapters(loop), strict=True))


def test_features_that_are_no_numbers_name_their_rows(make, clear, make_loop) -> None:
    loop = make_loop(make(), clear)
    with torch.no_grad():
        adapters(loop)[0].fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"Features of rows \[0, 1, 2"):
        loop.run_step(BATCH)
