"""A report as Markdown, for the card of a model."""

from __future__ import annotations

from collections.abc import Iterable

from bayestune.bench.table import plain, to_markdown
from bayestune.report import words
from bayestune.report.contents import Report, TaskReport


def to_markdown_report(report: Report) -> str:
    """Return the tables, what is missing, and what was trained by which recipe."""
    state = f"{report.done} of {report.total} trainings are there"
    out = [f"# {plain(report.name)}", "", f"Seeds wanted: {report.seeds}; {state}.", ""]
    out += [f"- {plain(line)}" for line in words.reading(report)]
    for task in report.tasks:
        out += ["", *_task(task)]
    out += ["", "### Versions and machines", ""]
    versions = (f"{name} {', '.join(values)}" for name, values in report.environment.items())
    out += [plain("; ".join(versions)) + ".", "", "### What all trainings have in common", ""]
    out.append(plain(words.pairs(report.recipe, "; ")))
    return "\n".join(out) + "\n"


def _task(task: TaskReport) -> Iterable[str]:
    if task.table is None:
        yield f"### {plain(task.name)}"
    else:
        yield to_markdown(task.table)
        yield ""
        yield f"Dropped as duplicates: {words.dropped(task)}."
    if task.missing:
        yield ""
        yield "**Missing here:**"
        yield ""
        yield from (f"- {plain(sentence)}" for sentence in task.missing)
    sweeps = [method for method in task.methods if method.trials]
    if sweeps:
        yield ""
        yield "Held-out NLL of the first seed by learning rate, the chosen one bold:"
        yield ""
    for method in sweeps:
        tried = (
            f"{'**' * t.chosen}{t.lr:g}: {words.tried(t)}{'**' * t.chosen}" for t in method.trials
        )
        yield f"- {plain(method.name)}: {', '.join(tried)}"
    if task.methods:
        yield ""
        yield "| | seeds | recipe | chosen on held-out rows, by seed |"
        yield "|---|---|---|---|"
    for method in task.methods:
        texts = (
            method.name,
            words.seeds(method),
            *map(words.pairs, (method.recipe, method.chosen)),
        )
        yield "| " + " | ".join(map(plain, texts)) + " |"
