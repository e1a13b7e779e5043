"""Figures; they need matplotlib, which nothing else does."""

from __future__ import annotations

from bayestune.plots.calibration import reliability_figure, risk_coverage_figure
from bayestune.plots.style import save_figure
from bayestune.plots.unfamiliar import stable_rank_figure, unfamiliar_figure

__all__ = [
    "reliability_figure",
    "risk_coverage_figure",
    "save_figure",
    "stable_rank_figure",
    "unfamiliar_figure",
]
