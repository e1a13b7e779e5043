"""Training: any method, through its small contract."""

from __future__ import annotations

from bayestune.training.fit import fit
from bayestune.training.run import Run
from bayestune.training.trackers import wanted

__all__ = ["Run", "fit", "wanted"]
