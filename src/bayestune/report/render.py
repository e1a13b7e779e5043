"""A report in the form that the name of its file asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bayestune.errors import ConfigError
from bayestune.files import write_text
from bayestune.report.contents import Report
from bayestune.report.gather import gather
from bayestune.report.html import to_html
from bayestune.report.latex import to_latex
from bayestune.report.markdown import to_markdown_report

#: Forms by suffix.
FORMS: Mapping[str, Callable[[Report], str]] = {
    ".html": to_html,
    ".md": to_markdown_report,
    ".tex": to_latex,
}


def write_report(folder: Path, path: Path, reference: str | None = None) -> None:
    """Write the report of a benchmark atomically, as a page, Markdown or LaTeX by the suffix.

    The same cells give the same bytes.

    Args:
        folder: of the benchmark.
        path: the file to write, ``.html``, ``.md`` or ``.tex``.
        reference: the row that times and differences are relative to; the first where None.

    Raises:
        ConfigError: for another suffix or a row that is not there.
        StoreError: if the folder is no benchmark or holds nothing yet, or the file cannot be
            written.
    """
    form = FORMS.get(path.suffix)
    if form is None:
        raise ConfigError(f"{path} ends in {path.suffix!r}; a report is {', '.join(FORMS)}.")
    write_text(path, form(gather(folder, reference)))
