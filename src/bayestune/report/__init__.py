"""Reports of benchmarks: a page, Markdown or LaTeX, from the folder of cells alone."""

from __future__ import annotations

from bayestune.report.contents import Report
from bayestune.report.gather import gather
from bayestune.report.render import FORMS, write_report

__all__ = ["FORMS", "Report", "gather", "write_report"]
