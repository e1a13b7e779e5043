"""500 bad inputs of every kind, and that the fuzzer would notice what it is there to find."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from reliability import fuzz
from reliability.cases import FAMILIES, Folders, folders
from reliability.cases.harness import attempt, must

import bayestune as bt
from bayestune.errors import DataError


def test_500_bad_inputs_are_right_or_refused() -> None:
    counts = fuzz.run("ci")
    assert not counts.get("failed"), counts["failed"]
    assert counts["cases"] >= 500 and counts["refused in words"] > 250
    assert counts["as it should be"] > 80
    assert sum(fuzz.CASES["full"].values()) >= 10_000
    assert all(counts[f"cases of {kind.title}"] > 0 for kind in FAMILIES)


class Stub:
    """A family whose cases do as they are told."""

    name = title = "stub"

    def __init__(self, does) -> None:
        self.case = does


def sleep(rng: random.Random) -> bool:
    """Hang where everything is caught, as careless code does."""
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


@pytest.mark.parametrize(
    ("does", "ended", "problem"),
    [
        (lambda rng: True, "accepted", ""),
        (lambda rng: False, "refused", ""),
        (lambda rng: (_ for _ in ()).throw(DataError("bad")), "refused", ""),
        (lambda rng: {}["x"], "failed", "KeyError: 'x'"),
        (lambda rng: must(False, "other bytes"), "failed", "WrongError: other bytes"),
        (sleep, "failed", "no end in 0.1 s"),
    ],
)
def test_every_end_is_told_apart(does, ended, problem) -> None:
    found, failure = attempt(Stub(does), "0/0", 0.1)
    assert found == ended and (failure.problem if failure else "") == problem
    assert failure is None or failure.case == "stub/0/0"


def test_a_timer_that_runs_goes_on() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        attempt(Stub(lambda rng: True), "0/0", 1)
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_model_that_is_silently_another_is_noticed(tmp_path, monkeypatch) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "folders").mkdir()
    family = Folders(tmp_path / "folders", fuzz.World.make(tmp_path / "world"))
    monkeypatch.setattr("bayestune.store.model.verify", lambda *_: None)
    monkeypatch.setattr(folders, "_ACCIDENTS", (Folders._swap,))
    monkeypatch.setattr(folders, "_INTENTS", (Folders._swap,))
    found = [attempt(family, f"1/{i}", 20)[1] for i in range(24)]
    said = {failure.problem for failure in found if failure}
    assert "WrongError: another model, and nobody said so" in said
    assert bt.load(family.world.run).labels.names  # the world itself is as it was
