"""The record of a run: its folder, its history and what was chosen."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bayestune.config import Recipe, to_mapping
from bayestune.errors import StoreError
from bayestune.files import discard, sync, tidy, write_json, write_text
from bayestune.store import UNFINISHED
from bayestune.version import __version__

#: Where the state of an unfinished training lies, and those of candidates for its KL weight.
CHECKPOINT = "checkpoint"
RACE = "race"


@dataclass(frozen=True)
class Run:
    """What `fit` did.

    Attributes:
        out: the run's folder; None where nothing was written.
        recipe: everything that determined it, choices included.
        history: one row of numbers per epoch.
        chosen: KL weight, refresh precision, temperature and the epoch that was kept.
        seconds: wall time.
    """

    out: Path | None
    recipe: Recipe
    history: list[dict[str, Any]] = field(repr=False)
    chosen: dict[str, Any]
    seconds: float


class Journal:
    """Writes a run's folder: recipe, environment and one line of metrics per epoch.

    Args:
        out: the folder; None writes nothing.
        mute: only look, as another process writes.
    """

    def __init__(self, out: Path | None, *, mute: bool = False) -> None:
        self.out = out
        self.writes = out is not None and not mute

    @property
    def is_open(self) -> bool:
        """Whether a run was begun here and not finished."""
        return self.out is not None and (self.out / UNFINISHED).exists()

    def require_free(self, *, overwrite: bool) -> None:
        """Raise StoreError if a run lies here that is not to be replaced or continued."""
        if self.out is None or not self.writes or overwrite:
            return
        if any((self.out / name).exists() for name in ("model", CHECKPOINT, RACE)):
            raise StoreError(
                f"{self.out} already holds a run; give another folder, --resume to continue it or "
                "--overwrite to replace it."
            )

    def open(self, recipe: Recipe, facts: Mapping[str, Any], *, resumed: bool) -> None:
        """Create the folder, or continue in it."""
        if self.out is None or not self.writes:
            return
        tidy(self.out)
        write_text(self.out / UNFINISHED, "This run was not finished.\n")
        write_text(self.out / "recipe.yaml", yaml.safe_dump(to_mapping(recipe), sort_keys=False))
        write_json(self.out / "env.json", {**environment(), **facts})
        if not resumed:
            # An earlier model stays until the new one is complete; a state to resume from does not.
            self.drop(CHECKPOINT, RACE)
            write_text(self.out / "metrics.jsonl", "")

    def close(self) -> None:
        """Remove the states: there is nothing left to continue."""
        if self.out is not None and self.writes:
            if (rows := self.out / "metrics.jsonl").exists():
                sync(rows)  # the states know them, and go
            # First: who is killed between the two finds a finished run, or its last state.
            (self.out / UNFINISHED).unlink(missing_ok=True)
        self.drop(CHECKPOINT, RACE)

    def drop(self, *names: str) -> None:
        """Remove states that are of no use any more."""
        if self.out is not None and self.writes:
            for name in names:
                discard(self.out / name)

    def line(self, row: Mapping[str, Any]) -> None:
        """Append one row of numbers to ``metrics.jsonl``."""
        if self.out is None or not self.writes:
            return
        try:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StoreError(
                f"{self.out / 'metrics.jsonl'} could not be written: {error}"
            ) from error

    def truncate(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows anew: those of a checkpoint, without what followed it."""
        if self.out is not None and self.writes:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(self.out / "metrics.jsonl", text)


def environment() -> dict[str, Any]:
    """Return versions and machine, for the record."""
    import peft
    import torch
    import transformers

    return {
        "bayestune": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
