from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.data import length_grouped_batches, packed_batches, pad
from bayestune.errors import ConfigError, DataError

ROWS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=6)


@settings(deadline=None, derandomize=True)
@given(ROWS, st.sampled_from(["right", "left"]))
def test_pad_gives_every_row_back(rows, side):
    ids, mask, positions = pad(rows, 0, side)
    width = max(len(row) for row in rows)
    assert ids.shape == mask.shape == positions.shape == (len(rows), width)
    assert {t.dtype for t in (ids, mask, positions)} == {torch.int64}
    for i, row in enumerate(rows):
        blank = [0] * (width - len(row))
        ones = [1] * len(row)
        assert ids[i].tolist() == (row + blank if side == "right" else blank + row)
        assert mask[i].tolist() == (ones + blank if side == "right" else blank + ones)
        assert positions[i][mask[i].bool()].tolist() == list(range(len(row)))
        assert positions[i].min() >= 0
        assert positions[i].max() == len(row) - 1


def test_pad_is_checked():
    with pytest.raises(ConfigError, match=r"side 'rigth'. Did you mean 'right'\?"):
        pad([[1]], 0, "rigth")
    for rows in ([], [[1], []]):
        with pytest.raises(DataError, match="at least one token"):
            pad(rows, 0)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 500), max_size=300),
    st.integers(1, 9),
    st.integers(0, 5),
    st.booleans(),
)
def test_every_position_exactly_once(lengths, batch_size, seed, shuffle):
    batches = length_grouped_batches(lengths, batch_size, seed=seed, shuffle=shuffle)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def waste(lengths, batches):
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return padded / sum(lengths)


def test_grouping_saves_padding_and_still_shuffles():
    rng = random.Random(0)
    lengths = [rng.randint(5, 200) for _ in range(2000)]
    batches = length_grouped_batches(lengths, 8, seed=1)
    order = list(range(2000))
    rng.shuffle(order)
    ungrouped = [order[i : i + 8] for i in range(0, 2000, 8)]
    assert waste(lengths, batches) < 1.06 < 1.5 < waste(lengths, ungrouped)
    # The batches come in random order, and partners change from epoch to epoch.
    longest = [max(lengths[i] for i in batch) for batch in batches]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 90 < rises < 160
    other = length_grouped_batches(lengths, 8, seed=1, epoch=1)
    assert {frozenset(b) for b in batches}.isdisjoint({frozenset(b) for b in other})


def test_seed_and_epoch_decide():
    lengths = [random.Random(2).randint(1, 50) for _ in range(100)]
    first = length_grouped_batches(lengths, 4, seed=3, epoch=2)
    assert first == length_grouped_batches(lengths, 4, seed=3, epoch=2)
    assert first != length_grouped_batches(lengths, 4, seed=3, epoch=1)
    assert first != length_grouped_batches(lengths, 4, seed=2, epoch=2)


def test_evaluation_order_is_longest_first():
    assert length_grouped_batches([1, 5, 3, 5], 2, shuffle=False) == [[1, 3], [2, 0]]
    assert length_grouped_batches([], 2) == []
    with pytest.raises(ConfigError, match="batch_size is 0"):
        length_grouped_batches([1], 0)


def test_the_package_imports_without_torch():
    code = (
        "import sys, bayestune.data; "
        "heavy = {'torch', 'transformers', 'tokenizers', 'datasets', 'pyarrow', 'numpy'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("overhead", [0.0, 3.0, 50.0])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
def test_packed_batches_cost_least(overhead, batch_size) -> None:
    rng = random.Random(batch_size)
    lengths = [rng.choice([1, 2, 3, 9, 20]) for _ in range(9)]

    def cost(batches) -> float:
        return sum(len(b) * max(lengths[i] for i in b) + overhead for b in batches)

    found = packed_batches(lengths, batch_size, overhead)
    assert sorted(i for b in found for i in b) == list(range(9))
    assert max(map(len, found)) <= batch_size
    order = sorted(range(9), key=lambda i: -lengths[i])
    every = []  # every way to cut the sorted rows
    for cuts in product([False, True], repeat=8):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        pairs = pairwise([0, *ends, 9])
        batches = [order[a:b] for a, b in pairs]
        if max(map(len, batches)) <= batch_size:
            every.append(cost(batches))
    assert cost(found) == min(every)
    assert [lengths[b[0]] for b in found] == sorted((lengths[b[0]] for b in found), reverse=True)


def test_packed_batches_of_one_length_are_full() -> None:
    assert sorted(map(len, packed_batches([7] * 10, 4, 1.0))) == [2, 4, 4]
    assert packed_batches([], 4, 1.0) == []
    with pytest.raises(ConfigError, match="at least 1"):
        packed_batches([1], 0, 1.0)
