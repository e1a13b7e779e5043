"""``python -m reliability``: run all subjects, and write their counts to docs/reliability.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reliability.md"
#: Modules of this folder that are no subjects have no ``run(budget)``.
_RUN = re.compile(r"^def run\(budget: str", re.MULTILINE)


def subjects() -> list[str]:
    """Return the names of all subjects."""
    return sorted(path.stem for path in HERE.glob("*.py") if _RUN.search(path.read_text("utf-8")))


def versions() -> str:
    """Return what the counts were taken with."""
    import peft
    import torch
    import transformers

    from bayestune.version import __version__

    found = {
        "bayestune": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())


def section(subject: str, budget: str, seconds: float, counts: dict[str, int | float | str]) -> str:
    """Return the part of the page that a subject fills."""
    command = f"python -m reliability {subject} --budget {budget}"
    told = (
        f"`{command}`: {seconds / 60:.0f} minutes on {os.cpu_count()} cores, no GPU; {versions()}."
    )
    rows = [f"| {name} | {value} |" for name, value in counts.items()]
    return "\n".join([told, "", "| | |", "|---|---|", *rows])


def write(subject: str, text: str) -> None:
    """Put the part of a subject in its place on the page, between its two marks."""
    begin, end = f"<!-- {subject}: counts -->", f"<!-- {subject}: end -->"
    page = PAGE.read_text("utf-8")
    if begin not in page:
        page += f"\n## {subject.capitalize()}\n\n{begin}\n{end}\n"
    before, _, rest = page.partition(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", "utf-8")


def main() -> None:
    """Run subjects, each in a process of its own; the exit status is 1 where one fails."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("subjects", nargs="*", default=subjects(), metavar="SUBJECT")
    parser.add_argument("--budget", choices=("ci", "full"), default="full")
    parser.add_argument("--write", action="store_true", help=f"put the counts into {PAGE.name}")
    parser.add_argument("--here", action="store_true", help="in this process; prints JSON alone")
    asked = parser.parse_args()
    if asked.here:
        for subject in asked.subjects:
            counts = importlib.import_module(f"reliability.{subject}").run(asked.budget)
            print(json.dumps(counts))
        return
    failed = False
    for subject in asked.subjects:
        started = time.monotonic()
        command = [sys.executable, "-m", "reliability", subject, "--budget", asked.budget, "--here"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        counts = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}
        if not counts or counts.get("failed"):
            print(f"{subject}: failed {json.dumps(counts, indent=2)}", file=sys.stderr)
            failed = True
            continue
        print(json.dumps({"subject": subject, "budget": asked.budget, **counts}))
        print(f"{subject}: " + ", ".join(f"{name} {value}" for name, value in counts.items()))
        if asked.write:
            seconds = time.monotonic() - started
            write(subject, section(subject, asked.budget, seconds, counts))
    sys.exit(failed)


if __name__ == "__main__":
    main()
