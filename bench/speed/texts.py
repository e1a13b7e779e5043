"""Texts for timing: labelled, of the lengths that messages have, and learnable."""

from __future__ import annotations

import random

from bayestune.data import Task

COMMON = """the a of to and in that it is was for on with as at be this have from or had by not but
what all were when we there can an your which their if will one about how up out them then she"""
TOPICS = {
    "delivery": "parcel courier arrived late package door tracking depot shipped address",
    "payment": "card charged refund invoice bank twice amount receipt price euros",
    "account": "password login email locked profile username reset sign code settings",
    "product": "broken screen battery size colour button cable noise loose scratched",
}
#: Of a log-normal distribution: the median length in words, and its spread.
MEDIAN, SPREAD = 20, 0.8
LONGEST = 200


def tasks(train: int, test: int = 0, seed: int = 0) -> tuple[Task, Task]:
    """Return texts of 4 classes: those to train on, and others of the same kind."""
    rng = random.Random(seed)
    rows = [_row(rng, list(TOPICS)[i % len(TOPICS)]) for i in range(train + test)]
    task = Task.from_rows(rows)
    return task.select(range(train)), task.select(range(train, train + test))


def _row(rng: random.Random, label: str) -> dict[str, str]:
    length = min(LONGEST, max(4, round(MEDIAN * rng.lognormvariate(0, SPREAD))))
    words = rng.choices(COMMON.split(), k=length)
    for i in rng.sample(range(length), max(2, length // 6)):
        words[i] = rng.choice(TOPICS[label].split())
    return {"text": " ".join(words), "label": label}
