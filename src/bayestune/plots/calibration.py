"""Is a confidence of 80 % right in 80 % of cases, and how wrong is what is kept?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bayestune import metrics
from bayestune.plots.style import new_figure, require_classes, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayestune.evaluation import Evaluation


def reliability_figure(evaluations: Mapping[str, Evaluation], bins: int = 15) -> Figure:
    """Draw accuracy against confidence, one panel per method; bars and point sizes count the rows.

    Args:
        evaluations: by name of the method.
        bins: right-closed bins of equal width, as in the ECE.
    """
    require_classes(evaluations.values())
    figure, axes = new_figure(len(evaluations))
    for axis, (name, evaluation) in zip(axes, evaluations.items(), strict=True):
        colour = styles(evaluations)[name]["color"]
        result = metrics.reliability(
            *metrics.top_label(evaluation.prediction.probs, evaluation.targets), bins
        )
        share = (result.counts / result.counts.sum()).tolist()
        full = result.counts > 0
        left = result.edges[:-1].tolist()
        axis.bar(left, share, 1 / bins, align="edge", color=colour, alpha=0.18)
        axis.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
        x, y = result.confidence[full].tolist(), result.accuracy[full].tolist()
        axis.plot(x, y, linewidth=0.8, alpha=0.5, color=colour)
        # A bin of three rows must not look like one of three hundred.
        axis.scatter(
            x, y, s=[8 + 160 * s for s in share if s > 0], color=colour, zorder=3, clip_on=False
        )
        axis.set(
            xlim=(0, 1),
            ylim=(0, 1.02),
            xlabel="confidence",
            ylabel="accuracy (points), share of rows (bars)",
            title=f"{name}: ECE {evaluation.ece:.3f}, NLL {evaluation.nll:.3f}",
        )
        axis.title.set_fontsize(9)
    return figure


def risk_coverage_figure(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Draw the error rate of what is kept against the share that is kept, most confident first.

    Args:
        evaluations: by name of the method.
    """
    require_classes(evaluations.values())
    figure, (axis,) = new_figure(1, width=4.4)
    for name, style in styles(evaluations).items():
        evaluation = evaluations[name]
        confidence, correct = metrics.top_label(evaluation.prediction.probs, evaluation.targets)
        curve = metrics.risk_coverage_curve(confidence, correct)
        label = f"{name} (AURC {evaluation.aurc:.3f})"
        axis.plot(curve.coverage.tolist(), curve.risk.tolist(), linewidth=1.4, label=label, **style)
    axis.set(xlim=(0, 1), xlabel="share answered", ylabel="error rate of the answers")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)
    return figure
