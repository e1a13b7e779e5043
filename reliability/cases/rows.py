"""Data files: JSON lines and CSV; what is accepted is compared with Python's own readers."""

from __future__ import annotations

import csv
import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

from bayestune.data import Task, open_tolerant, read_lines_tolerant
from bayestune.errors import DataError
from reliability.cases.damage import ODD, spoil, text
from reliability.cases.harness import must
from reliability.cases.world import World

_LABELS = ("login", "parcel", "refund", "émoji 🏳️‍🌈", "שלום")


def rows(rng: random.Random) -> list[dict[str, Any]]:
    """Return labelled rows, most of them fine."""
    found = []
    for number in range(rng.randint(1, 12)):
        row: dict[str, Any] = {"text": text(rng) or "x", "label": rng.choice(_LABELS)}
        if rng.random() < 0.3:
            row["id"] = rng.choice((number, "same", 7))
        if rng.random() < 0.05:
            row[rng.choice(("text", "label", "id"))] = rng.choice(ODD)
        found.append(row)
    return found


def jsonl(rng: random.Random) -> bytes:
    """Return JSON lines, with line ends, marks and escapes of any kind."""
    end = rng.choice(("\n", "\n", "\r\n", "\n\n"))
    ascii_only = rng.random() < 0.5
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows(rng)]
    data = end.join(lines).encode("utf-8", "surrogatepass")
    data = data if rng.random() < 0.5 else data + end.encode()
    return b"\xef\xbb\xbf" + data if rng.random() < 0.1 else data


def same_rows(task: Task, expected: list[dict[str, Any]]) -> None:
    """Raise unless examples are these rows, in order."""
    must(len(task) == len(expected), f"{len(task)} examples of {len(expected)} rows")
    for example, row in zip(task, expected, strict=True):
        if task.kind == "classification":
            must(example.text == row["text"], f"{example.text!r:.80} for {row['text']!r:.80}")
        if "label" in row and task.kind == "classification":
            raw, found = row["label"], task.labels.values[example.label]
            spelt = {True: "true", False: "false"}.get(raw, raw) if isinstance(raw, bool) else raw
            must(str(found) == str(spelt).strip() or found == spelt, f"{found!r} for {raw!r}")


class Jsonl:
    """Files of JSON lines."""

    name, title = "jsonl", "JSON lines"

    def __init__(self, folder: Path, world: World) -> None:
        self.file = folder / "rows.jsonl"

    def case(self, rng: random.Random) -> bool:
        """Read a file strictly and tolerantly; the latter must speak of every line."""
        data = jsonl(rng)
        data = spoil(rng, data) if rng.random() < 0.8 else data
        self.file.write_bytes(data)
        lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        spoken = [item for _, item in read_lines_tolerant(io.BytesIO(data))]
        must(len(spoken) <= len(lines), "more rows than lines")
        for item in spoken:
            must(isinstance(item, dict | DataError), f"{item!r:.80} is no row")
        task = Task.from_jsonl(self.file)
        must(not any(isinstance(item, DataError) for item in spoken), "strict reading is laxer")
        same_rows(task, [json.loads(line.decode().strip()) for line in lines])
        return True


class Csv:
    """CSV files."""

    name, title = "csv", "CSV files"

    def __init__(self, folder: Path, world: World) -> None:
        self.file = folder / "rows.csv"

    def case(self, rng: random.Random) -> bool:
        """Read a file strictly and tolerantly, and compare with Python's reader."""
        out = io.StringIO(newline="")
        end, quoting = rng.choice(("\n", "\r\n")), rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
        writer = csv.writer(out, lineterminator=end, quoting=quoting)
        header = rng.choice((["text", "label"], ["label", "text"], ["id", "text", "label"]))
        writer.writerow(header)
        for row in rows(rng):
            writer.writerow([row.get(name, "") for name in header])
        data = out.getvalue().encode("utf-8", "surrogatepass")
        data = b"\xef\xbb\xbf" + data if rng.random() < 0.1 else data
        data = spoil(rng, data) if rng.random() < 0.8 else data
        self.file.write_bytes(data)
        numbers = [number for number, _ in open_tolerant(self.file).rows]
        must(all(a < b for a, b in pairwise(numbers)), f"line numbers {numbers}")
        task = Task.from_csv(self.file)
        decoded = data.decode("utf-8").removeprefix("\ufeff")
        records = [r for r in csv.reader(io.StringIO(decoded, newline="\n"), strict=True) if r]
        names = [cell.strip() for cell in records[0]]
        kept = [r for r in records[1:] if len(r) > 1 or r[0].strip()]
        same_rows(task, [dict(zip(names, record, strict=True)) for record in kept])
        return True
