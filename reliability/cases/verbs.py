"""Verbs of the command line on bad rows: exit codes, and files that lie where they are to write."""

from __future__ import annotations

import json
import random
from pathlib import Path

from typer.testing import CliRunner

from bayestune.cli.app import app
from reliability.cases.damage import spoil
from reliability.cases.harness import must, snapshot
from reliability.cases.rows import jsonl
from reliability.cases.world import World

_BEFORE = "what was there before\n"


class Verbs:
    """Predict, evaluate, calibrate, update and train, in this process."""

    name, title = "verbs", "whole commands"

    def __init__(self, folder: Path, world: World) -> None:
        self.world, self.rows, self.out = world, folder / "rows.jsonl", folder / "out"
        self.out.mkdir()

    def case(self, rng: random.Random) -> bool:
        """Run a verb on bad rows; what it was to replace is whole, or as it was."""
        data = jsonl(rng)
        self.rows.write_bytes(spoil(rng, data) if rng.random() < 0.7 else data)
        target = self.out / "predictions.jsonl"
        target.write_text(_BEFORE)
        before = snapshot(self.out)
        verb = rng.choice(_VERBS)
        given = {"RUN": str(self.world.run), "ROWS": str(self.rows), "OUT": str(target)}
        given["DIR"] = str(self.out)
        result = CliRunner().invoke(app, [given.get(word, word) for word in verb])
        said = result.output + result.stderr
        must(result.exit_code in (0, 2), f"{verb[0]} ends with {result.exit_code}: {said[-200:]}")
        must("Traceback" not in said, "a traceback")
        if result.exit_code == 2:
            must(snapshot(self.out) == before, "a refusal left other bytes behind")
            must(said.strip(), "not a word of why")
        elif verb[0] == "predict":
            for line in target.read_text(encoding="utf-8").splitlines():
                must("probs" in json.loads(line), "a row without probabilities")
        return result.exit_code == 0


_VERBS = (
    ("predict", "RUN", "ROWS", "--out", "OUT"),
    ("predict", "RUN", "ROWS", "--out", "OUT", "--strict"),
    ("eval", "RUN", "--data", "ROWS"),
    ("train", "--data", "ROWS", "--out", "DIR", "--dry-run", "--model", "no/such/folder/at/all"),
    ("update", "RUN", "--data", "ROWS", "--out", "DIR"),
)
