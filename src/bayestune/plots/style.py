"""One look for every figure: quiet axes, a colour and a line style per method, legible in grey."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayestune.errors import ConfigError
from bayestune.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
LINES = ("-", "--", "-.", ":")


def new_figure(columns: int, width: float = 3.6, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes side by side; it belongs to no window and no global state.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            'Figures need matplotlib; install it with: pip install "bayestune[plots]"'
        ) from None
    figure = Figure(figsize=(width * columns, height), layout="constrained", dpi=150)
    axes: list[Any] = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, linewidth=0.4, alpha=0.4)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
    return figure, axes


def require_classes(evaluations: Iterable[object]) -> None:
    """Raise ConfigError where an evaluation is of numbers, which these figures cannot show."""
    if not all(isinstance(evaluation, Evaluation) for evaluation in evaluations):
        raise ConfigError("This figure shows predicted classes; an evaluation is of numbers.")


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a line style for each name, in order."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % len(LINES)]}
        for i, name in enumerate(names)
    }


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, SVG or PDF by its suffix; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
