"""What all families share: a tiny backbone, a calibrated and measured run on it, its answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import bayestune as bt
from bayestune.data import Task
from bayestune.evaluation import record
from bayestune.model import BayesModel
from bayestune.progress import silent

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from tiny_bases import save_llama
from toy_tasks import topic_rows

TEXTS = ("please find my parcel", "refund 👩‍👩‍👧", "שלום login")


@dataclass(frozen=True)
class World:
    """A run that must not be changed; families work on copies.

    Attributes:
        folder: where it lies.
        base: the backbone's folder.
        run: the run's folder.
        other: a run of the same recipe and another seed.
    """

    folder: Path
    base: Path
    run: Path
    other: Path

    @classmethod
    def make(cls, folder: Path) -> World:
        """Train two runs of a moment, calibrate and measure them."""
        base = save_llama(folder / "base", layers=2)
        rows = topic_rows(360, 1, wrong=0.1)
        train, fresh = Task.from_rows(rows[:90]), rows[90:]
        found = cls(folder, base, folder / "run", folder / "other")
        for seed, out in enumerate((found.run, found.other)):
            options: dict[str, Any] = {"rank": 2, "layers": "top:1", "kl": 1.0, "head_lr": 5e-2}
            model = bt.build("polar_vbll", base=str(base), labels=train, **options)
            bt.fit(model, train, epochs=2, seed=seed, out=out, progress=silent)
            bt.calibrate(model, Task.from_rows(fresh, like=train), coverage=0.9, max_risk=0.3)
            model.save(out / "model")
            some = Task.from_rows(fresh[:40], like=train)
            record(model, bt.evaluate(model, some), some, out)
        return found

    @cached_property
    def model(self) -> BayesModel:
        """The model of the run."""
        return bt.load(self.run)

    @cached_property
    def answers(self) -> torch.Tensor:
        """What it says of a few texts."""
        return answers(self.model)

    def texts(self, count: int) -> list[str]:
        """Return different texts like those it was trained on."""
        rows = topic_rows(3 * count, 2)
        return list(dict.fromkeys(row["text"] for row in rows))[:count]


def answers(model: BayesModel, texts: Sequence[str] = TEXTS) -> torch.Tensor:
    """Return all that a model says of texts, as numbers ``(N, K + 2)``."""
    found: Any = model.predict(list(texts))
    parts = [found.probs, found.epistemic[:, None], found.ood_score[:, None]]
    if found.abstain is not None:
        parts.append(found.abstain[:, None])
    return torch.cat([part.double() for part in parts], 1)
