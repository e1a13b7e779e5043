"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

torch is left out: which build fits a machine is its owner's choice, and is installed first.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def lowest(requirements: list[str]) -> list[str]:
    """Return ``name==version`` for every ``name>=version``."""
    found = [re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in requirements]
    pins = [f"{match[1]}=={match[2]}" for match in found if match]
    assert len(pins) == len(requirements), "a dependency has no lower bound"
    return [pin for pin in pins if not pin.startswith("torch==")]


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    read = project["optional-dependencies"]["data"]  # Parquet, whose reader is built for a numpy
    print("\n".join(lowest([*project["dependencies"], *read])))
