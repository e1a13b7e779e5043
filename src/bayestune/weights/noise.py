"""Random numbers that depend on what they are for, never on what was drawn before them."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str | bytes) -> torch.Generator:
    """Return a generator seeded by a key: the same key gives the same numbers, on any machine.

    Args:
        key: seed, sample, layer and whatever else the noise depends on.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8)
    # On the CPU, whatever the model runs on, so that devices agree.
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
