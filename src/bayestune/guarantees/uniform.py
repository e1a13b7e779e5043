"""Numbers that are as good as drawn at random, yet always the same for a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def uniforms(texts: Iterable[str]) -> Tensor:
    """Return a number for each text that is spread evenly over texts.

        u = ⌊2⁵³ hash(text) / 2⁶⁴⌋ / 2⁵³ ∈ [0, 1)

    It does not depend on the batch, its order, the machine or a seed, so that a text has one set.
    Being a function of the row it leaves the guarantee as it is: rows stay exchangeable.

    Args:
        texts: N texts.

    Returns:
        float64 ``(N,)``.
    """
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    numbers = [(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in digests]
    return torch.tensor(numbers, dtype=torch.float64)
