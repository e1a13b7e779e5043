"""The crash subject at its smallest: what it counts, and that it would notice."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bayestune

ROOT = Path(__file__).parents[2]
SOURCE = str(Path(bayestune.__file__).parents[1])

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="harness needs Linux")


def reliability(subject: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a subject in a process of its own, which forks others; first some code."""
    code = f"import sys; sys.argv[1:] = ['{subject}', '--budget', 'ci', '--here']; {before}\n"
    return subprocess.run(
        [sys.executable, "-c", code + "from reliability.__main__ import main; main()"],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_starved_and_stopped_trainings_end_as_whole_ones() -> None:
    ended = reliability("crash")
    assert ended.returncode == 0, ended.stderr[-2000:]
    counts = json.loads(ended.stdout.splitlines()[-1])
    assert counts["kills"] >= 3 and counts["kills inside a save"] >= 1
    assert counts["full disks"] == counts["read-only folders"] == 1
    assert counts["signals answered by 130"] == counts["signals answered by 143"] == 1


def test_every_subject_is_found(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module("reliability.__main__")
    assert {"crash", "determinism"} <= set(main.subjects())


def test_the_counts_of_a_subject_take_the_place_of_its_earlier_ones(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module("reliability.__main__")
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- a: counts -->\nold\n<!-- a: end -->\nrest\n")
    monkeypatch.setattr(main, "PAGE", page)
    main.write("a", "new")
    main.write("b", "other")
    assert page.read_text() == (
        "# Title\n\n<!-- a: counts -->\nnew\n<!-- a: end -->\nrest\n"
        "\n## B\n\n<!-- b: counts -->\nother\n<!-- b: end -->\n"
    )
