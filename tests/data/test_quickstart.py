"""The quick-start data: complete, well formed, free of duplicates and of templates."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from bayestune.data.quickstart import QUICKSTART_FILES, quickstart_path
from bayestune.errors import DataError

INTENTS = [
    "delivery_status",
    "delivery_change",
    "damaged_or_wrong_item",
    "return_or_exchange",
    "refund_status",
    "payment_problem",
    "invoice_request",
    "account_access",
    "cancel_order_or_subscription",
    "product_question",
]
PER_INTENT = {"train": 70, "test": 30}
SPLITS = ("train", "test", "oos")


def rows(split: str) -> list[dict[str, str]]:
    text = quickstart_path(f"{split}.jsonl").read_bytes().decode("utf-8", errors="strict")
    return [json.loads(line) for line in text.splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("’", ""))


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def by_intent() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {intent: [] for intent in INTENTS}
    for row in rows("train") + rows("test"):
        found[row["label"]].append(row["text"])
    return found


def test_path_is_an_installed_file() -> None:
    for name in QUICKSTART_FILES:
        path = quickstart_path(name)
        assert isinstance(path, Path)
        assert path.name == name
        assert path.is_file()


def test_path_rejects_an_unknown_name() -> None:
    with pytest.raises(DataError, match=r"Did you mean 'train\.jsonl'"):
        quickstart_path("train.json")
    with pytest.raises(DataError, match="no quick-start file"):
        quickstart_path("../quickstart/train.jsonl")


def test_labels_are_the_intents_in_order() -> None:
    assert json.loads(quickstart_path("labels.json").read_text("utf-8")) == INTENTS


@pytest.mark.parametrize("split", ["train", "test"])
def test_counts_per_intent(split: str) -> None:
    counts = Counter(row["label"] for row in rows(split))
    assert counts == dict.fromkeys(INTENTS, PER_INTENT[split])


def test_out_of_scope_rows_have_no_label() -> None:
    found = rows("oos")
    assert len(found) == 80
    assert all(set(row) == {"id", "text"} for row in found)


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_unique_and_numbered(split: str) -> None:
    ids = [row["id"] for row in rows(split)]
    assert ids == [f"{split}-{number:04d}" for number in range(1, len(ids) + 1)]


@pytest.mark.parametrize("split", SPLITS)
def test_texts_are_clean(split: str) -> None:
    for row in rows(split):
        text = row["text"]
        assert all(isinstance(value, str) for value in row.values())
        assert text == text.strip() and "  " not in text and text.isprintable(), row["id"]
        assert "\ufffd" not in text
        assert len(text) <= 400, row["id"]


def test_no_duplicates_within_or_across_splits() -> None:
    seen = Counter(" ".join(words(row["text"])) for split in SPLITS for row in rows(split))
    assert [text for text, count in seen.items() if count > 1] == []


def test_no_test_row_is_a_light_rewording_of_another_row() -> None:
    train = [(row["id"], set(words(row["text"]))) for row in rows("train")]
    for split in ("test", "oos"):
        for row in rows(split):
            own = set(words(row["text"]))
            close = [other for other, bag in train if jaccard(own, bag) > 0.5]
            assert close == [], (row["id"], close)


@pytest.mark.parametrize("intent", INTENTS)
def test_openings_vary(intent: str) -> None:
    openings = Counter(" ".join(words(text)[:3]) for text in by_intent()[intent])
    assert {opening: n for opening, n in openings.items() if n > 2} == {}


@pytest.mark.parametrize("intent", INTENTS)
def test_vocabulary_varies(intent: str) -> None:
    texts = by_intent()[intent]
    bags = [set(words(text)) for text in texts]
    pairs = [jaccard(a, b) for a, b in combinations(bags, 2)]
    assert sum(pairs) / len(pairs) < 0.1
    assert len(set().union(*bags)) > 400


def test_lengths_vary() -> None:
    lengths = [len(words(row["text"])) for row in rows("train") + rows("test")]
    assert min(lengths) <= 3
    assert max(lengths) >= 30
    assert sum(n <= 6 for n in lengths) >= 50
    assert sum(n >= 25 for n in lengths) >= 50


def test_telling_words_occur_in_several_intents() -> None:
    texts = by_intent()
    for word, least in {"order": 9, "refund": 6, "card": 6, "invoice": 3, "address": 4}.items():
        hits = {intent for intent in INTENTS if any(word in words(text) for text in texts[intent])}
        assert len(hits) >= least, (word, sorted(hits))
    silent = [text for text in texts["refund_status"] if "refund" not in " ".join(words(text))]
    assert len(silent) >= 30
