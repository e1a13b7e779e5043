"""Predictions by two workers of a local Ray, one of which dies in the middle of a slice.

python ray_run.py RUN FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from bayestune.scoring.output import JsonLines
from bayestune.scoring.ray import Scorer, Settings, score


class Dying(Scorer):
    """Kills its own process behind the first rows of the third slice, once."""

    def score(self, some: Any) -> dict[str, Any]:
        died = Path(self.settings.out).parent / "died"
        if some.number == 2 and not died.exists():
            put = JsonLines.put

            def last(output: JsonLines, rows: Any) -> None:
                put(output, rows[:5])
                died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

            JsonLines.put = last
        return super().score(some)


def main(run: str, folder: Path) -> None:
    """Predict, and write what was counted."""
    settings = Settings(run, str(folder / "out"), ".jsonl", 16, {})
    said: list[str] = []
    how: dict[str, Any] = {"workers": 2, "rows": 50, "report": said.append}
    first = score(settings, [str(folder / "*.jsonl")], **how, scorer=Dying)
    parts = sorted((folder / "out").glob("part-*.jsonl"))
    before = {p.name: p.stat().st_mtime_ns for p in parts}
    lost = folder / "out" / "part-000001"  # as if the job had been interrupted before it
    lost.with_suffix(".json").unlink()
    again = score(settings, [str(folder / "*.jsonl")], **how)
    redone = [p.name for p in parts if p.stat().st_mtime_ns != before[p.name]]
    found = {"first": first, "again": again, "redone": redone, "said": sorted(said)}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
