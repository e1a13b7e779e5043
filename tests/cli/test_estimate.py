"""The dry run: counts against the model's own shapes, times against hand arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from bayestune.cli import estimate as subject
from bayestune.cli.estimate import estimate
from bayestune.data import length_grouped_batches
from bayestune.errors import ConfigError, DataError
from bayestune.finalize import KAPPAS

WIDTH, CLASSES, LAYERS, RANK = 32, 3, 2, 4
QUERY, VALUE = 32, 16  # outputs: 4 heads of 8, and 2 for keys and values


@pytest.fixture
def second_each(monkeypatch) -> None:
    """Let every timed action take one second."""

    def timed(model, action) -> float:
        action()
        return 1.0

    monkeypatch.setattr(subject, "_timed", timed)


def test_parameters_and_bytes(make, clear) -> None:
    model = make()
    found = estimate(model, clear, None)
    adapter = LAYERS * sum(out * RANK + RANK**2 + WIDTH * RANK for out in (QUERY, VALUE))
    assert (found.adapter, found.head) == (adapter, 2 * WIDTH * CLASSES)
    names = dict(model.backbone.transformer.named_parameters())
    assert found.frozen == sum(p.numel() for p in names.values() if not p.requires_grad)
    assert found.memory["weights"] == 4 * found.frozen
    assert found.memory["adapter, head and optimiser"] == 4 * 4 * (found.adapter + found.head)
    encoded = model.encode(clear)
    assert found.tokens == (sum(encoded.lengths), max(encoded.lengths))
    # What a cache really holds when it is filled.
    model.cache = model.new_cache()
    model.reader().fill(encoded)
    assert found.memory["prefix cache"] == model.cache.memory_bytes


@pytest.mark.parametrize("given", [True, False])
def test_times(make, clear, clear_test, second_each, given) -> None:
    epochs, size = 6, 16
    model = make(kl="auto", epochs=epochs, train={"batch_size": size, "hold_out": 0.25})
    found = estimate(model, clear, clear_test if given else None)
    lengths, others = model.encode(clear).lengths, model.encode(clear_test).lengths

    def padded(lengths, size, **options):
        batches = length_grouped_batches(lengths, size, **options)
        return sum(len(b) * max(lengths[i] for i in b) for b in batches)

    batches = length_grouped_batches(lengths, size, seed=0)
    timed = sum(len(b) * max(lengths[i] for i in b) for b in batches[1:4])
    per_token = 3 / timed
    share = 1.0 if given else 0.75
    epoch = share * sum(len(b) * max(lengths[i] for i in b) for b in batches)
    every = padded(lengths, 32, shuffle=False)
    held = padded(others, 32, shuffle=False) if given else 0.25 * every
    expected = {
        "frozen layers": every + (held if given else 0),
        "choosing the KL weight": len(KAPPAS) * 3 * epoch,
        "training": 3 * epoch,
        "held-out and final features": (len(KAPPAS) * 3 + 3 + 1) * held + epoch,
    }
    assert found.steps == 3
    assert found.seconds == pytest.approx({k: v * per_token for k, v in expected.items()})


def test_times_of_so_many_steps(make, clear, second_each) -> None:
    # 90 of 120 rows are trained on: 6 batches an epoch, of which the race takes two of four.
    options = {"batch_size": 16, "hold_out": 0.25}
    whole = estimate(make(kl="auto", epochs=4, train=options), clear, None).seconds
    same = estimate(make(kl="auto", train={**options, "max_steps": 24}), clear, None).seconds
    assert same == pytest.approx(whole)
    short = estimate(make(kl="auto", train={**options, "max_steps": 21}), clear, None).seconds
    name = "choosing the KL weight"
    assert short.pop("training") == pytest.approx(whole.pop("training") * 9 / 12)
    assert short == pytest.approx(whole)
    single = estimate(make(kl="auto", train={**options, "max_steps": 4}), clear, None).seconds
    assert single[name] == pytest.approx(whole[name] * 4 / 12) and "training" not in single


def test_without_a_cache_and_without_a_choice(make, clear, second_each) -> None:
    found = estimate(make("mle", layers="all", kl=0.0), clear, None)
    assert found.memory["prefix cache"] == 0
    assert "choosing the KL weight" not in found.seconds
    assert found.head == WIDTH * CLASSES
    assert "held-out and final features" in found.seconds
    kept = {"train": {"hold_out": 0.9}}  # of which nothing is held out where nothing is chosen
    same = estimate(make("mle", layers="all", kl=0.0, **kept), clear, None)
    assert same.seconds == found.seconds


def test_a_single_batch_is_enough(make, clear) -> None:
    found = estimate(make(), clear.select(range(10)), None)
    assert found.steps == 1
    assert found.memory["activations"] > 0


def test_activations_grow_with_what_is_adapted(make, clear) -> None:
    few, many = (estimate(make(layers=f"top:{n}"), clear, None) for n in (1, 3))
    assert many.memory["activations"] > 1.5 * few.memory["activations"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deviations": "natural", "kl": 0.0}, "deviations=natural .* train.kl above 0"),
        ({"hold_out": 0.0}, "chosen on held-out rows, and there are none"),
        ({"refresh": "full", "predictive": "exact"}, "predictive=exact integrates"),
    ],
)
def test_what_the_training_would_refuse_is_refused(make, clear, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        estimate(make(**options), clear, None)
    one = clear.select([i for i in range(len(clear)) if clear[i].label == 1])
    with pytest.raises(DataError, match="of one class"):
        estimate(make(), one, None)


def test_kept_storages_count_once_and_without_parameters() -> None:
    weight = torch.ones(8, requires_grad=True)
    data = torch.ones(100, 8)
    kept = subject._Kept()
    with saved_tensors_hooks(kept.note, lambda t: t):
        scaled = data * weight  # keeps data
        scaled.exp().exp().sum()  # keeps two results of 100 × 8
    everything = kept.bytes(set())
    assert everything == 3 * 100 * 8 * 4
    assert kept.bytes({data.untyped_storage().data_ptr()}) == 2 * 100 * 8 * 4


@pytest.mark.parametrize(
    ("count", "text"), [(999, "1 kB"), (5e5, "500 kB"), (2.5e6, "2.5 MB"), (1.5e9, "1.5 GB")]
)
def test_sizes(count, text) -> None:
    assert subject._size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (42.0, "42 s"), (130.0, "2 min"), (3599.0, "60 min"), (3700.0, "1 h 2 min")],
)
def test_durations(seconds, text) -> None:
    assert subject._duration(seconds) == text
    assert math.isfinite(seconds)
