"""A report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from bayestune.bench.table import Estimate, gap_text
from bayestune.errors import ConfigError
from bayestune.report import words
from bayestune.report.contents import Method, Report, TaskReport
from bayestune.report.curves import BINS

_SCORES = {
    "max_prob": "max-prob",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "density": "feature density",
}
_COSTS = {"train": "training time", "predict": "prediction time", "size": "size"}
_QUANTITIES = {
    "val_nll": "held-out NLL",
    "train_nll": "training NLL",
    "val_accuracy": "held-out accuracy",
    "stable_rank": "stable rank",
}


def to_html(report: Report) -> str:
    """Return the page.

    Raises:
        ConfigError: if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ConfigError(
            'A page needs jinja2; install it with: pip install "bayestune[report]", or write '
            "report.md or report.tex."
        ) from None
    source = files(__name__.rpartition(".")[0]) / "page"
    names = ("page.html", "style.css", "charts.js", "page.js")
    page, css, charts, script = ((source / name).read_text("utf-8") for name in names)
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    # Escaped by nature: these are the project's own.
    own = {"css": Markup(css), "charts": Markup(charts), "script": Markup(script)}
    return env.from_string(page).render(
        **own,
        report=report,
        data=data(report),
        words=words,
        controls=words.controls(report),
        bins=BINS,
        gap=gap_text,
        number=_number,
        sets=lambda counts: [(name, name) for name in counts["ood"]],
        scores=list(_SCORES.items()),
        costnames=list(_COSTS.items()),
        quantities=list(_QUANTITIES.items()),
    )


def data(report: Report) -> dict[str, Any]:
    """Return what the charts draw, as plain values of four digits."""
    return {
        "shown": [report.rows.index(row) for row in report.shown],
        "coverages": report.coverages,
        "rates": report.rates,
        "tasks": [
            {"methods": [_method(report, task, method) for method in task.methods]}
            for task in report.tasks
        ],
    }


def _method(report: Report, task: TaskReport, method: Method) -> dict[str, Any]:
    entry, costs = method.entry, words.costs(method)
    cost, gap = entry.line.cells[0].cost, entry.gap
    found = {
        "row": report.rows.index(method.name),
        "name": method.name,
        "point": method.point,
        "nll": _pair(entry.values["NLL"]),
        "ece": _pair(entry.values["ECE"]),
        "gap": gap
        and {"mean": gap.mean, "low": gap.low, "high": gap.high, "clear": gap.excludes_zero},
        "train": _pair(costs["train_seconds"]),
        "predict": _pair(costs["predict_seconds"]),
        "size": [cost["trained"] + cost["stored"], None],
        "bins": vars(method.reliability),
        "risk": method.risk,
        "ood": {
            name: {score: vars(found) for score, found in by_score.items()}
            for name, by_score in method.unfamiliar.items()
        },
        "epochs": [
            [cell.key.seed, values]
            for cell, values in zip(entry.line.cells, method.epochs, strict=True)
        ],
        "trials": [[trial.lr, trial.nll, trial.chosen] for trial in method.trials],
    }
    return _short(found)


def _pair(value: Estimate) -> list[float | None]:
    return [value.mean, value.error]


def _short(value: Any) -> Any:
    """Return plain values whose floats have four digits."""
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
