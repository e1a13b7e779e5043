"""One case after another: refused in words or right, in time, and nothing else touched."""

from __future__ import annotations

import random
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bayestune.errors import BayestuneError


class HangError(BaseException):
    """A case takes too long; no Exception, so that nothing on its way takes it for its own."""


class WrongError(Exception):
    """What came out is not what must hold."""


def must(holds: object, problem: str) -> None:
    """Raise WrongError where something does not hold."""
    if not holds:
        raise WrongError(problem)


class Family(Protocol):
    """A kind of input; made once, in a place of its own, with the world that all families share."""

    #: In the seeds by which a case is found again, and in counts.
    name: str
    title: str

    def case(self, rng: random.Random) -> bool:
        """Try one input; return whether it was accepted, raise WrongError for a broken promise.

        A BayestuneError is a refusal; any other exception is a traceback that a user would see.
        """
        ...


@dataclass(frozen=True)
class Failure:
    """A case that broke a promise.

    Attributes:
        case: its seed, by which `replay` runs it again.
        problem: what happened.
        stack: where.
    """

    case: str
    problem: str
    stack: str


def attempt(family: Family, seed: str, seconds: float) -> tuple[str, Failure | None]:
    """Run one case and say how it ended: accepted, refused or failed."""
    rng = random.Random(f"{family.name}/{seed}")
    try:
        with warnings.catch_warnings(), _within(seconds):
            warnings.simplefilter("ignore")
            return ("accepted" if family.case(rng) else "refused"), None
    except BayestuneError:
        return "refused", None
    except HangError:
        problem, stack = f"no end in {seconds:g} s", traceback.format_exc()
    except Exception as error:
        problem, stack = f"{type(error).__name__}: {str(error)[:300]}", traceback.format_exc()
    return "failed", Failure(f"{family.name}/{seed}", problem, stack)


def sweep(
    family: Family, cases: int, seed: int, seconds: float
) -> tuple[Counter[str], list[Failure]]:
    """Run many cases of a family; return how they ended, and those that failed."""
    counts: Counter[str] = Counter()
    failures = []
    for number in range(cases):
        ended, failure = attempt(family, f"{seed}/{number}", seconds)
        counts[ended] += 1
        if failure is not None:
            failures.append(failure)
    return counts, failures


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise HangError in the main thread; a timer that runs already goes on afterwards."""

    def late(*_: object) -> None:
        raise HangError

    handler = signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        spent = seconds - signal.setitimer(signal.ITIMER_REAL, 0)[0]
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.1, left - spent))


def snapshot(folder: Path) -> Mapping[str, object]:
    """Return all that lies in a folder: bytes of files, targets of links, what else is there."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        else:
            found[name] = path.read_bytes() if path.is_file() else "no file"
    return found
