"""The fenced code blocks of a page, and which of them say that the tests do not run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: A block whose first line begins with this is not run; what follows it says why.
MARK = "# not run by the tests: "
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: its file.
        line: the line of the file on which its code begins.
        language: ``"bash"`` or ``"python"``.
        code: the text between the fences.
    """

    page: Path
    line: int
    language: str
    code: str

    @property
    def reason(self) -> str | None:
        """Why it is not run; None where it is."""
        first = self.code.partition("\n")[0]
        return first.removeprefix(MARK) if first.startswith(MARK) else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return README and every page of the documentation that has a block of code."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if blocks(page)]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of shell commands and of Python on a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for match in _FENCE.finditer(text)
        if match[1] in ("bash", "python")
    ]
