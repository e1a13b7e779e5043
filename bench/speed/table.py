"""The page of all measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayestune.files import read_json, write_text

_INTRO = """# Speed

    python -m bench.speed            # make bench; on a CUDA machine: make bench-gpu
    python -m bench.speed --table    # writes this page

Ratios of runs that took turns within one process, medians over the repeats. A limit is what the
better method could at most reach here, and why. The files under `speed/` hold the seconds.
"""


def sentence(row: Mapping[str, Any]) -> str:
    """Return a row for a terminal."""
    verdict = {True: "kept", False: "MISSED", None: ""}[row["met"]]
    bound = f" (target {row['target']}: {verdict})" if row["target"] else ""
    return f"{row['what']}: {number(row)}{bound}"


def number(row: Mapping[str, Any]) -> str:
    """Return a value with its unit."""
    value, unit = row["value"], row["unit"]
    if not unit:
        return f"{value:.1%}"
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def write(page: Path, folder: Path, targets: Sequence[str], only: Mapping[str, str]) -> None:
    """Write the page from the files of a folder."""
    parts = [_INTRO]
    for device in ("cpu", "cuda"):
        parts += _device(device, folder, [t for t in targets if only.get(t, device) == device])
    write_text(page, "\n".join(parts).rstrip() + "\n")


def _device(device: str, folder: Path, targets: Sequence[str]) -> list[str]:
    found = {t: folder / f"{t}.{device}.json" for t in targets}
    there = {t: read_json(file) for t, file in found.items() if file.exists()}
    lines = [f"## {'On a CPU' if device == 'cpu' else 'On a GPU'}\n"]
    lines += sorted({_machine(data) + "\n" for data in there.values()})
    plain = {t: data for t, data in there.items() if t != "growth"}
    if plain:
        lines += ["| what | measured | target | | limit |", "|---|---|---|---|---|"]
        lines += [_line(row) for data in plain.values() for row in data["rows"]]
        lines.append("")
    if missing := [t for t in targets if t not in there]:
        lines.append(f"Not measured: {', '.join(missing)}.\n")
    if "growth" in there:
        lines += _growth(there["growth"])
    return lines


def _machine(data: Mapping[str, Any]) -> str:
    own, threads = data["environment"], data["command"].rpartition(" ")[2]
    versions = ", ".join(f"{n} {own[n]}" for n in ("bayestune", "torch", "transformers", "peft"))
    return f"{data['device']} ({own['machine']}, {threads} thread(s)); {versions}."


def _line(row: Mapping[str, Any]) -> str:
    verdict = {True: "kept", False: "**missed**", None: ""}[row["met"]]
    return f"| {row['what']} | {number(row)} | {row['target']} | {verdict} | {row['limit']} |"


def _growth(data: Mapping[str, Any]) -> list[str]:
    lines = [
        "### How cost grows\n",
        "Each size is varied alone. The exponent is that of the last doubling (or last two sizes): "
        "1 is linear.\n",
        "| what | in | sizes | time | exponent | memory beside the weights | exponent |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        at = row["detail"]
        sizes = ", ".join(f"{n:,}" for n in at["sizes"])
        times = ", ".join(_seconds(s) for s in at["seconds"])
        memory = ", ".join(f"{m:.0f}" for m in at["mb"])
        cells = [row["what"], at["in"], sizes, times, f"{row['value']:.2f}"]
        cells += [f"{memory} MB", f"{at['memory_exponent']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
