"""The tables of a report for LaTeX with booktabs."""

from __future__ import annotations

import re

from bayestune.bench.table import AFTER, METRICS, Estimate, Table
from bayestune.report.contents import Method, Report, TaskReport

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
_HEAD = r"""% \usepackage{adjustbox,booktabs}; \usepackage[T1]{fontenc} for names beyond ASCII.
"""


def to_latex(report: Report) -> str:
    """Return a table per task and one of its rows from elsewhere, each with its caption."""
    parts = [_HEAD]
    for task in report.tasks:
        # A comment ends with its line, and a name could hold one.
        parts += [f"% {' '.join(f'{task.name}: {line}'.split())}\n" for line in task.missing]
        if task.table:
            parts += [_quality(report, task, task.table), *_outside(task, task.table)]
            parts += _shifted(task, task.table)
    return "\n".join(parts)


def escape(text: str) -> str:
    """Return text as it is to be read, within a line of LaTeX."""
    text = " ".join(text.split())
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda m: _SPECIAL[m[0]], text)


def _quality(report: Report, task: TaskReport, table: Table) -> str:
    titles = [title for title in table.columns if title in (*METRICS, *AFTER)]
    rows = []
    for method in task.methods:
        entry, gap = method.entry, method.entry.gap
        values = [_estimate(entry.values[t], t == "NLL" and entry.best) for t in titles]
        ratios = ["--" if r is None else f"{r:.1f}$\\times$" for r in entry.ratios.values()]
        interval = gap and f"${gap.mean:+.3f}$ [${gap.low:+.3f}$, ${gap.high:+.3f}$]"
        rows.append([_name(method), str(len(entry.line.cells)), *values, *ratios, interval or "--"])
    counts = table.counts
    caption = escape(
        f"{task.name}: {counts['test']} test rows, {counts['train']} training, {counts['val']} "
        "held-out; mean ± standard error over seeds. Bold: the lowest NLL and those not "
        "significantly different (paired bootstrap, 95 %). Times and differences, with 95 % "
        f"intervals, are relative to {report.reference}."
        + (f" Learning rate not tuned: {table.untuned}." if table.fixed else "")
    )
    heads = ["", "seeds", *titles, "train", "predict", f"NLL − {report.reference}"]
    return _tabular(task, caption, heads, rows)


def _outside(task: TaskReport, table: Table) -> list[str]:
    titles = [title for title in table.columns if title not in (*METRICS, *AFTER)]
    if not titles:
        return []
    counts = table.counts
    outside = ", ".join(f"{name} ({n})" for name, n in counts["ood"].items())
    rows = [
        [_name(method), *(_estimate(method.entry.values[title]) for title in titles)]
        for method in task.methods
    ]
    caption = escape(
        f"{task.name}: AUROC of telling {counts['test']} test rows from rows from elsewhere, "
        f"{outside}; mean ± standard error over seeds."
    )
    return [_tabular(task, caption, ["", *titles], rows)]


def _shifted(task: TaskReport, table: Table) -> list[str]:
    titles = list(task.methods[0].entry.shifted)
    if not titles:
        return []
    of = ", ".join(f"{name} ({n})" for name, n in table.counts["shifted"].items())
    rows = [
        [_name(method), *(_estimate(each) for each in method.entry.shifted.values())]
        for method in task.methods
    ]
    caption = escape(
        f"{task.name}: models of its training rows on labelled rows from elsewhere, {of}; mean ± "
        "standard error over seeds. MI: AUROC of telling them from the test rows."
    )
    return [_tabular(task, caption, ["", *titles], rows)]


def _tabular(task: TaskReport, caption: str, heads: list[str], rows: list[list[str]]) -> str:
    dagger = r" $\dagger$: point estimates." if any(m.point for m in task.methods) else ""
    lines = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{caption}{dagger}}}",
        r"\begin{adjustbox}{max width=\textwidth}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape, heads)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _name(method: Method) -> str:
    return escape(method.name) + (r"$^{\dagger}$" if method.point else "")


def _estimate(value: Estimate, bold: bool = False) -> str:
    mean = f"{value.mean:.3f}"
    error = "" if value.error is None else f" {{\\scriptsize $\\pm$ {value.error:.3f}}}"
    return (f"\\textbf{{{mean}}}" if bold else mean) + error
