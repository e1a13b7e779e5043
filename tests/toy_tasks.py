"""Toy tasks of a few words: a clear one, a noisy one, and texts about something else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

TOPICS: Mapping[str, Sequence[str]] = {
    "login": ("login", "password", "account", "email"),
    "parcel": ("parcel", "courier", "delivery", "tracking"),
    "refund": ("refund", "invoice", "charge", "receipt"),
}
FILLERS = [
    "please",
    "tell",
    "me",
    "about",
    "the",
    "my",
    "your",
    "a",
    "this",
    "is",
    "was",
    "not",
    "yet",
    "can",
    "you",
    "when",
    "how",
    "why",
    "today",
    "again",
    "still",
    "since",
    "week",
    "order",
    "help",
    "need",
    "want",
    "find",
]
FOREIGN = [
    "volcano",
    "orchid",
    "saxophone",
    "glacier",
    "penguin",
    "nebula",
    "sculpture",
    "cathedral",
    "origami",
    "marathon",
    "tundra",
]


def topic_rows(
    count: int,
    seed: int = 0,
    *,
    topics: Sequence[str] = tuple(TOPICS),
    wrong: float = 0.0,
) -> list[dict[str, Any]]:
    """Texts with one word of a topic; a share ``wrong`` of them carries another topic's label."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        topic = topics[number % len(topics)]
        words = rng.choices(FILLERS, k=rng.randint(2, 6))
        words.insert(rng.randint(0, len(words)), rng.choice(TOPICS[topic]))
        if rng.random() < wrong:
            topic = rng.choice([name for name in topics if name != topic])
        rows.append({"text": " ".join(words), "label": topic})
    rng.shuffle(rows)
    return rows


def random_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose labels, two in equal number, have nothing to do with them."""
    rows = topic_rows(count, seed)
    return [{**row, "label": ("heads", "tails")[i % 2]} for i, row in enumerate(rows)]


def foreign_texts(count: int, seed: int = 0) -> list[str]:
    """Texts about none of the topics."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(FOREIGN, k=rng.randint(3, 7))) for _ in range(count)]


def choice_rows(
    count: int, seed: int = 0, choices: Sequence[int] = (2, 3, 4)
) -> list[dict[str, Any]]:
    """Questions about a topic; the right choice is a word of it, in a random place."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        topic = rng.choice(list(TOPICS))
        right, asked = rng.sample(list(TOPICS[topic]), 2)
        others = [w for name in TOPICS if name != topic for w in TOPICS[name]]
        offered = [right, *rng.sample(others, choices[number % len(choices)] - 1)]
        rng.shuffle(offered)
        answer = "ABCDE"[offered.index(right)]
        rows.append({"question": f"find {asked}", "choices": offered, "answer": answer})
    return rows


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of texts about the same topic or about two."""
    first, second = topic_rows(count, seed), topic_rows(count, seed + 1)
    return [
        {
            "text": a["text"],
            "text2": b["text"],
            "label": "same" if a["label"] == b["label"] else "other",
        }
        for a, b in zip(first, second, strict=True)
    ]


def level_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with three words of two topics; the label is how many are of the second: 0 to 3."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        level = number % 4
        words = rng.choices(TOPICS["login"], k=3 - level) + rng.choices(TOPICS["refund"], k=level)
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": level})
    rng.shuffle(rows)
    return rows


#: What a text about each topic is worth, in hours, without the noise.
HOURS = {"login": 2.0, "parcel": 40.0, "refund": 100.0}


def number_rows(
    count: int, seed: int = 0, *, noise: float = 10.0, outliers: float = 0.0
) -> list[dict[str, Any]]:
    """Texts of a topic with the hours it takes, noise added; a share are off by 500 hours."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for row in topic_rows(count, seed):
        hours = HOURS[row["label"]] + rng.gauss(0, noise)
        if rng.random() < outliers:
            hours += rng.choice((-500, 500))
        rows.append({"text": row["text"], "label": hours})
    return rows
