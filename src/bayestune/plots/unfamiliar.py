"""Do inputs from elsewhere look different?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from bayestune.evaluation import SCORES
from bayestune.plots.style import COLOURS, new_figure, require_classes, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayestune.evaluation import Evaluation

_TITLES = {
    "max_prob": "1 − confidence",
    "entropy": "entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "density": "distance to the nearest class",
}


def unfamiliar_figure(evaluation: Evaluation, name: str) -> Figure:
    """Draw histograms of every score for rows from inside and for those of one other set.

    Args:
        evaluation: of one method.
        name: of the out-of-distribution set.
    """
    require_classes([evaluation])
    inside, outside = evaluation.prediction, evaluation.ood_predictions[name]
    figure, axes = new_figure(len(SCORES), width=3.0)
    for axis, (key, score) in zip(axes, SCORES.items(), strict=True):
        offset = 1.0 if key == "max_prob" else 0.0
        values = [score(p).double() + offset for p in (inside, outside)]
        low = float(min(v.min() for v in values))
        high = float(torch.cat(values).quantile(0.995))
        high = max(high, low + 1e-9)
        edges = torch.linspace(low, high, 31, dtype=torch.float64)
        for v, label, colour in zip(values, ("inside", name), COLOURS, strict=False):
            weights = torch.full_like(v, 1 / len(v))
            axis.hist(
                v.clamp(low, high).tolist(),
                bins=edges.tolist(),
                weights=weights.tolist(),
                alpha=0.55,
                color=colour,
                label=label,
            )
        auroc = evaluation.ood[name][f"auroc_{key}"]
        axis.set(xlabel=_TITLES[key], ylabel="share of rows", title=f"AUROC {auroc:.3f}")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7, frameon=False)
    return figure


def stable_rank_figure(histories: Mapping[str, list[dict[str, float]]]) -> Figure:
    """Draw the mean stable rank of ΔW over epochs: rank collapse is what PoLAR prevents.

    Args:
        histories: rows of ``metrics.jsonl`` by name of the method.
    """
    figure, (axis,) = new_figure(1, width=4.4)
    for name, style in styles(histories).items():
        rows = histories[name]
        axis.plot(
            [row["epoch"] for row in rows],
            [row["stable_rank"] for row in rows],
            marker="o",
            markersize=3,
            linewidth=1.4,
            label=name,
            **style,
        )
    axis.set(xlabel="epoch", ylabel="stable rank of ΔW (mean over layers)")
    axis.set_ylim(bottom=0.9)
    axis.legend(fontsize=7, frameon=False)
    return figure
