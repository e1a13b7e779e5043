"""The numbers of a regression task: what a cell holds, and the unit they are learnt in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bayestune.errors import DataError


def as_number(value: object, subject: str = "The label", *, untyped: bool = False) -> float:
    """Return the finite number that a cell holds.

    Args:
        value: the cell.
        subject: what an error calls it.
        untyped: whether every cell is text, as in CSV; elsewhere text is no number.

    Raises:
        DataError: if the value is text, a boolean, missing, NaN or infinite.
    """
    if not isinstance(value, str) and hasattr(value, "item"):
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]  # a NumPy scalar
    wrong = DataError(
        f"{subject} is {'null' if value is None else f'{value!r:.40}'}; expected a finite number."
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    # Python reads 1_000 as a number; nobody writes one so in data.
    if isinstance(value, str) and (not untyped or "_" in value):
        raise wrong
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    return number


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of training targets, in which they are learnt.

    Args:
        mean: what counts as zero.
        std: what counts as one, positive.
    """

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, values: Sequence[float], source: str = "The data") -> Scaling:
        """Measure training targets.

        Raises:
            DataError: if they are all equal, or too large to have a standard deviation.
        """
        try:
            found = cls(statistics.fmean(values), statistics.pstdev(values))
        except OverflowError:
            found = cls(math.inf, math.inf)
        if found.std == 0:
            raise DataError(f"{source}: every number is {values[0]:g}; there is nothing to learn.")
        if not (math.isfinite(found.mean) and math.isfinite(found.std)):
            raise DataError(f"{source}: the numbers are too large; give them in another unit.")
        return found
