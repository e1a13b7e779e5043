"""Reports of benchmarks: one page, Markdown or LaTeX, from the folder of cells alone."""

from __future__ import annotations

from bayestune.report.contents import Report
from bayestune.report.gather import gather
from bayestune.report.html import to_html

__all__ = ["Report", "gather", "to_html"]
