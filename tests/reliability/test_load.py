"""The server beyond its capacity for a moment: every answer right, none lost, a clean end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from reliability.load import Tally, run

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def test_an_overloaded_server_loses_and_garbles_nothing() -> None:
    counts = run("ci")
    assert not counts.get("failed"), counts["failed"]
    assert counts["wrong answers"] == counts["accepted requests that were lost"] == 0
    assert counts["requests answered"] > 60 and counts["requests given up by their clients"] > 0
    assert counts["requests answered after SIGTERM"] == 60
    assert counts["p99 of an answer, ms"] >= counts["p50 of an answer, ms"] > 0


def test_what_is_wrong_is_counted() -> None:
    tally = Tally({"a": {"x": 0.25, "y": 0.75}})
    fine = {"predictions": [{"probs": {"x": 0.25, "y": 0.75}}]}
    off = {"predictions": [{"probs": {"x": 0.26, "y": 0.74}}]}
    nan = {"predictions": [{"probs": {"x": float("nan"), "y": 0.75}}]}
    for status, answer in ((200, fine), (200, off), (200, nan), (429, {}), (500, {})):
        tally.judge(["a"], status, answer)
    tally.judge(["a", "a"], 200, fine)
    assert tally.counts["wrong"] == 4 and tally.counts["refused"] == 1
    assert tally.counts["accepted"] == 4 and len(tally.problems) == 4
