"""Rates, clipping and batches over the steps of a run."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import move

BATCH = list(range(8))


def test_the_rate_rises_to_its_peak_and_falls_to_nothing(make, clear, make_loop) -> None:
    loop = make_loop(make(), clear, epochs=2, batch_size=12, warmup=0.2)
    assert (loop.steps_per_epoch, loop.total_steps) == (10, 20)
    rates = [loop.rate(step) for step in range(21)]
    assert rates[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    assert rates[4:] == pytest.approx([(20 - step) / 16 for step in range(4, 21)])
    assert rates[20] == 0 and min(rates[:20]) > 0
    assert make_loop(make(), clear, warmup=0.0).rate(0) == 1


def test_the_fall_may_end_above_nothing(make, clear, make_loop) -> None:
    loop = make_loop(make(), clear, epochs=2, batch_size=12, warmup=0.2, floor=0.5)
    expected = [1 / 4, 2 / 4, 3 / 4, 1] + [max(0.5, (20 - step) / 16) for step in range(4, 20)]
    assert [loop.rate(step) for step in range(20)] == pytest.approx(expected)


def test_every_group_follows_the_rate_from_its_own_peak(make, clear, make_loop) -> None:
    model = make()
    loop = make_loop(
        model, clear, epochs=1, batch_size=12, warmup=0.5, lr=1e-3, head_lr=1e-2, kappa=0.0
    )
    width = float(model.head.feature_energy)
    for batch in list(loop.batches())[:3]:
        rate = loop.rate(loop.step)
        loop.run_step(batch)
        assert all(g["lr"] == pytest.approx(1e-3 * rate) for g in loop.adapter.param_groups)
        assert [g["lr"] for g in loop.posterior.param_groups] == pytest.approx(
            sorted([1e-2 * rate * (32 / width) ** 0.5, 1e-2 * rate], reverse=(32 / width) > 1)
        )


@pytest.mark.parametrize(("limit", "used"), [(1e-3, 1e-3), (0.0, None), (1e6, None)])
def test_clipping_bounds_the_gradient_that_is_used(
    make, clear, make_loop, monkeypatch, limit, used
) -> None:
    loop = make_loop(move(make()), clear, clip=limit)
    norms: list[float] = []
    step = loop.adapter.step

    def note(*arguments):
        held = [p for group in loop.adapter.param_groups for p in group["params"]]
        parts = [p.grad.norm() for p in held if p.grad is not None]
        norms.append(float(torch.stack(parts).norm()))
        return step(*arguments)

    monkeypatch.setattr(loop.adapter, "step", note)
    _, _, reported = loop.run_step(BATCH)
    assert reported > 1e-2
    assert norms == [pytest.approx(reported if used is None else used, rel=1e-3)]


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own(make, clear, make_loop) -> None:
    loop = make_loop(make(), clear, batch_size=7)
    orders = []
    for epoch in range(3):
        loop.epoch, loop.step = epoch, epoch * loop.steps_per_epoch
        batches = list(loop.batches())
        assert len(batches) == loop.steps_per_epoch == 18
        assert sorted(i for batch in batches for i in batch) == list(range(120))
        lengths = [[loop.rows.encoded.lengths[i] for i in batch] for batch in batches]
        assert max(max(row) - min(row) for row in lengths) <= 2
        orders.append(batches)
        # In the middle of an epoch, what is left is what would have come.
        loop.step += 5
        assert list(loop.batches()) == batches[5:]
    assert orders[0] != orders[1] != orders[2]
