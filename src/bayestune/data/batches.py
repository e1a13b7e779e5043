"""Rows of ids side by side: padding, and batches of similar length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayestune.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import torch

CHUNK = 50


def pad(
    ids: Sequence[Sequence[int]], pad_id: int, side: str = "right"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad rows of ids to the longest.

    Positions count the tokens of each row from 0, whichever side is padded, so that they depend on
    the attention mask alone; padding repeats the nearest position. Encoders with their own offset
    (RoBERTa) make their positions themselves.

    Args:
        ids: B rows.
        pad_id: fills the rest; it may be a token that also occurs in the rows.
        side: ``"right"`` or ``"left"``, the side that is filled.

    Returns:
        Ids, attention mask (1 on tokens) and positions, int64, each ``(B, T)``.

    Raises:
        ConfigError: if the side is neither.
        DataError: if there is no row, or an empty one.
    """
    import torch

    if side not in ("right", "left"):
        raise ConfigError(f"Unknown padding side {side!r}.{nearest(side, ('right', 'left'))}")
    if not ids or not all(len(row) for row in ids):
        raise DataError("Only rows of at least one token can be padded.")
    longest = max(map(len, ids))
    input_ids = torch.full((len(ids), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), longest), dtype=torch.int64)
    for i, row in enumerate(ids):
        span = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        input_ids[i, span] = torch.tensor(row, dtype=torch.int64)
        mask[i, span] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)  # (B, T)
    return input_ids, mask, positions


def length_grouped_batches(
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> list[list[int]]:
    """Return batches of positions whose rows have similar lengths; every position exactly once.

    Shuffled, the positions are dealt into chunks of 50 batches, sorted by length within each
    chunk, cut into batches, and the batches are shuffled. Otherwise all positions are sorted,
    longest first, so that a lack of memory shows at once. Only the seed and the epoch decide.

    Args:
        lengths: the number of tokens of each row.
        batch_size: rows of a batch; one batch may be smaller.
        seed: of the shuffle.
        epoch: each epoch has its own order.
        shuffle: False for evaluation.

    Raises:
        ConfigError: if the batch size is less than 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    order = list(range(len(lengths)))
    rng = random.Random(f"{seed}:{epoch}")
    chunk = len(order) or 1
    if shuffle:
        rng.shuffle(order)
        chunk = batch_size * CHUNK
    batches: list[list[int]] = []
    for start in range(0, len(order), chunk):
        similar = sorted(order[start : start + chunk], key=lambda i: -lengths[i])
        batches += [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
    if shuffle:
        rng.shuffle(batches)
    return batches


def packed_batches(lengths: Sequence[int], batch_size: int, overhead: float) -> list[list[int]]:
    """Return the batches of rows, longest first, whose passes together cost least.

        Σ_b ( |b| · max_{i ∈ b} T_i + c )

    Full batches of texts whose lengths differ much are mostly padding; passes of few texts are
    mostly overhead c.

    Args:
        lengths: the number of tokens of each row, T.
        batch_size: the most rows of a batch.
        overhead: what a pass costs beside its tokens, in tokens.

    Raises:
        ConfigError: if the batch size is less than 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    import numpy as np

    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = np.array([lengths[i] for i in order], dtype=np.float64)
    least = np.zeros(len(order) + 1)  # cost of the first n rows
    starts = [0] * (len(order) + 1)  # of the last batch among them
    counts = np.arange(batch_size, 0, -1)
    for end in range(1, len(order) + 1):
        first = max(0, end - batch_size)
        rows = counts[batch_size - (end - first) :]
        costs = least[first:end] + longest[first:end] * rows
        best = int(costs.argmin())  # of equals the first, which is the largest batch
        least[end], starts[end] = costs[best] + overhead, first + best
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches[::-1]
