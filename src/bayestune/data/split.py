"""Which examples to hold out: stratified, deterministic, every class keeps one."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from bayestune.errors import ConfigError, DataError


def held_out(targets: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Choose the positions to hold out, from each class in proportion.

    With n_k examples of class k the quota is ``fraction · n_k``; the total is
    ``round(fraction · n)``, at least 1, and the parts that quotas leave over go to the largest
    remainders, equal ones in random order. No class gives all its examples.

    Args:
        targets: the class of each example; -1 counts as a class.
        fraction: the share to hold out, in (0, 1).
        seed: of the choice.

    Raises:
        ConfigError: if the fraction is not in (0, 1).
        DataError: if no class has two examples.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}; the share to hold out lies between 0 and 1.")
    rng = random.Random(seed)
    classes: dict[int, list[int]] = defaultdict(list)
    for position, target in enumerate(targets):
        classes[target].append(position)
    order = sorted(classes)
    rng.shuffle(order)
    quota = {k: fraction * len(classes[k]) for k in order}
    count = {k: int(quota[k]) for k in order}
    left = max(1, round(fraction * len(targets))) - sum(count.values())
    order.sort(key=lambda k: count[k] - quota[k])
    # More rounds than one are needed only where classes of a single example cannot give theirs.
    while left > 0:
        able = [k for k in order if count[k] < len(classes[k]) - 1][:left]
        if not able:
            break
        for k in able:
            count[k] += 1
        left -= len(able)
    chosen = {i for k in sorted(classes) for i in rng.sample(classes[k], count[k])}
    if not chosen:
        several = len(targets) > 1
        why = "no class has two of them" if several else "at least one is trained on"
        raise DataError(
            f"Nothing can be held out of {len(targets)} example{'s' * several}: {why}. "
            "Give a validation file instead."
        )
    return chosen
