"""README and docs show the same ten lines; `tests/docs` runs them with all other blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def ten_lines(path: Path) -> str:
    """Return the first Python block of a page that imports bayestune as bt."""
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "bt.fit(" in block)


def test_readme_and_docs_show_the_same_ten_lines() -> None:
    assert ten_lines(ROOT / "README.md") == ten_lines(ROOT / "docs" / "index.md")
    assert len(ten_lines(ROOT / "README.md").splitlines()) <= 10
