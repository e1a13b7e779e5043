"""Progress is for people: on stderr, a bar on a terminal and a line now and then elsewhere."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest

from bayestune import progress
from bayestune.progress import shown, silent


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_says_nothing(capfd):
    with silent("reading", 3) as advance:
        advance(2, "note")
        advance()
    assert capfd.readouterr() == ("", "")


def test_lines_come_at_most_every_ten_seconds_and_on_stderr(clock, capsys):
    with shown("reading", 100) as advance:
        for seconds, note in ((9.9, "early"), (0.1, "nll 0.5"), (9.9, "early"), (0.1, "nll 0.4")):
            clock.now += seconds
            advance(10, note)
        clock.now += 5
        advance(60)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading: 20/100, 40 s left nll 0.5",  # 20 in 10 s: 80 more take 40 s
        "reading: 40/100, 30 s left nll 0.4",  # 40 in 20 s: 60 more take 30 s
        "reading: 100/100 in 25.0 s",
    ]


def test_the_time_left_runs_down_while_a_unit_lasts(clock, capsys):
    with shown("trainings", 3) as advance:
        clock.now += 20
        advance(1)
        clock.now += 15
        advance(0, "epoch 2")
        clock.now += 35
        advance(0)
    assert capsys.readouterr().err.splitlines()[:3] == [
        "trainings: 1/3, 40 s left",  # one in 20 s: two more take 40 s
        "trainings: 1/3, 25 s left epoch 2",
        "trainings: 1/3, 0 s left",
    ]


def test_a_bar_says_what_is_left(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with shown("trainings", 3) as advance:
        clock.now += 3600  # longer ago than rich remembers
        advance()
        print("a line", file=sys.stderr)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "left -:--:--" in text and "left 2:00:00" in text
    assert "a line" in [line.strip() for line in re.split(r"[\r\n]", text)]


def test_a_short_step_off_a_terminal_is_not_worth_a_line(clock, capsys):
    with shown("reading", 2) as advance:
        advance(2)
        clock.now += 0.5
    assert capsys.readouterr() == ("", "")


def test_lines_bear_that_nothing_is_done_yet(clock, capsys):
    with shown("training", 8) as advance:
        clock.now += 11
        advance(0)
    assert capsys.readouterr().err.splitlines()[0] == "training: 0/8"


def test_an_error_passes_through_without_a_closing_line(clock, capsys):
    with pytest.raises(KeyboardInterrupt), shown("training", 8) as advance:
        clock.now += 3
        advance(1)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_the_last_note(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with shown("training", 4) as advance:
        advance(1, "nll 0.9")
        advance(2)
        advance()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "training" in text and "4/4" in text and "nll 0.9" in text
